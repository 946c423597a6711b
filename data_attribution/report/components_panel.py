"""The panel of components: a grid of patch effects, and the details of every head.

A head's details are its effect, its scores, where it looks on a prompt, and when it formed.
"""

from shlex import quote

from data_attribution.report import svg
from data_attribution.report.behaviour_results import BehaviourResults, Example
from data_attribution.report.page import Panel, command, measured, shown, strength, table
from data_attribution.report.svg import Line
from interp.patching import Effects
from interp.training_dynamics import TrajectoryPoint
from train.progress import count, listed


__all__ = ["attention_rows", "best_head", "components_panel", "detailed_heads", "part_key"]
__all__ += ["point_text"]

DETAILED = 64  # heads with details; a page of 1,024 heads would be too long


def components_panel(found: BehaviourResults) -> Panel:
    """Return the panel of heads and MLPs."""
    if found.heads is None:
        return Panel(
            "components",
            "Components",
            f"<p>Heads were not patched: {shown(found.refusal)}.</p>"
            + command(found.command("patch", "--over heads")),
            question="Which heads carry it?",
            answer="not measured<small>patching was refused, for the reason below</small>",
        )
    heads = found.heads
    case = found.behaviour.case_name
    name, share, measured_on = best_head(heads, case)
    body = (
        "<p>The model reads the comparison prompt, and one part of it is given the value that it "
        "had on the real prompt. A cell is the share of the difference between answer and foil "
        "that comes back: 0 is nothing, 1 is all of it. Parts that work one after the other each "
        "bring the same difference back, so shares need not add up to 1. "
        f"{_counted(heads, case)}</p>"
        '<div class="pair"><div>'
        + _grid(found)
        + command(found.command("patch", "--over heads"), found.command("patch", "--over mlps"))
        + f'</div><div data-group="head">{_head_parts(found)}</div></div>'
    )
    return Panel(
        "components",
        "Components",
        body,
        question="Which heads carry it?",
        answer=f"{shown(name)} alone restores {share}"
        f"<small>of the answer's lead, {measured_on}{_others(heads, found.mlps, name)}</small>",
    )


def best_head(heads: Effects, case: str = "prompt") -> tuple[str, str, str]:
    """Return the head with the largest effect, the effect, and on which cases it was measured.

    The interval of the largest of many is too narrow, so the head is chosen on one half of the
    prompts and measured on the other half, if there are enough.
    """
    if heads.part is not None and heads.whole is not None and len(heads.whole) >= 4:
        ((name, share),) = heads.held_out(1).items()
        half = len(heads.whole) // 2
        others = len(heads.whole) - half
        return (
            name,
            measured(share.value, share.low, share.high),
            f"measured on {count(others, case)} and chosen on {half} others",
        )
    name = heads.top(1)[0]
    return name, _effect(heads, name), f"n = {count(heads.n_prompts, case)}"


def _others(heads: Effects, mlps: Effects | None, name: str) -> str:
    """Return the next head and the largest MLP, for a single part seldom is the whole story."""
    said = [f"next {one} {_effect(heads, one)}" for one in heads.top(2) if one != name][:1]
    if mlps is not None:
        (largest,) = mlps.top(1)
        layer = largest.removeprefix("L").removesuffix(".mlp")
        said.append(f"the MLP of layer {layer} {_effect(mlps, largest)}")
    on_all = f" on all {heads.n_prompts}" if heads.n_prompts > 1 else ""
    return f"; {', '.join(said)}{on_all}" if said else ""


def _effect(effects: Effects, name: str) -> str:
    return measured(effects[name], *(effects.interval(name) or (None, None)))


def _counted(heads: Effects, case: str) -> str:
    if heads.n_prompts == 1:
        return f"There is one {case}, so no share has an interval."
    return f"{count(heads.n_prompts, case)}; 95 % intervals over {case}s."


def detailed_heads(found: BehaviourResults) -> list[str]:
    """Return the heads that have details, in the order of layers."""
    if found.heads is None:
        return []
    chosen = {*found.heads.top(DETAILED)}
    return [name for name in found.heads.names if name in chosen]


def _grid(found: BehaviourResults) -> str:
    """Return the table of layers by heads, and the MLP of each layer."""
    heads, detailed = found.heads, {*detailed_heads(found)}
    assert heads is not None
    n_layers, n_heads = heads.values.shape
    top = "".join(f"<th scope=col>head {head}</th>" for head in range(n_heads))
    largest = float(heads.values.nan_to_num().abs().max())
    if found.mlps is not None:
        top += "<th scope=col>MLP</th>"
        largest = max(largest, float(found.mlps.values.nan_to_num().abs().max()))
    rows = []
    for layer in range(n_layers):
        cells = "".join(
            _cell(heads, f"L{layer}H{head}", largest, f"L{layer}H{head}" in detailed)
            for head in range(n_heads)
        )
        if found.mlps is not None:
            cells += _cell(found.mlps, f"L{layer}.mlp", largest, True)
        rows.append(f"<tr><th scope=row>layer {layer}</th>{cells}</tr>")
    return (
        '<div class="wide"><table class="grid"><caption>Share that comes back, by layer and head'
        '<span class="screen"> (arrow keys move)</span></caption>'
        f"<thead><tr><td></td>{top}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(effects: Effects, name: str, largest: float, detailed: bool) -> str:
    value = effects[name]
    bounds = effects.interval(name)
    level = strength(abs(value) / largest) if largest else ""
    said = f"{value:.2f}" if value == value else "–"
    small = "" if bounds is None else f"<small>{bounds[0]:.2f} to {bounds[1]:.2f}</small>"
    shade = f"cell {'minus ' * (value < 0)}{level}".strip()
    label = f"{name}: {measured(value, *(bounds or (None, None)), n=effects.n_prompts)}"
    inside = f"{said}{small}"
    if detailed:
        key = part_key(name)
        inside = (
            f'<a href="#{key}" data-pick="head" title="{shown(label)}" '
            f'aria-label="{shown(label)}">{inside}</a>'
        )
    return f'<td class="{shade}">{inside}</td>'


def part_key(name: str) -> str:
    """Return the id of the part of the page that shows a head or an MLP."""
    return "part-" + name.replace(".", "-")


def _head_parts(found: BehaviourResults) -> str:
    assert found.heads is not None
    first = best_head(found.heads)[0]
    parts = [_head(found, name, opened=name == first) for name in detailed_heads(found)]
    if found.mlps is not None:
        parts += [_mlp(found, name) for name in found.mlps.names]
    return "".join(parts)


def _head(found: BehaviourResults, name: str, *, opened: bool) -> str:
    heads = found.heads
    assert heads is not None
    rows = [
        (
            "share that comes back",
            measured(
                heads[name],
                *(heads.interval(name) or (None, None)),
                n=heads.n_prompts,
                of=f"{found.behaviour.case_name}s",
            ),
        )
    ]
    for kind, scores in found.kinds.items():
        control = scores.highest_control
        untrained = "" if control is None else f"; untrained heads reach {control:.2f}"
        bounds = scores.interval(name) or (None, None)
        rows.append(
            (
                f"{kind} score",
                measured(scores[name], *bounds, n=scores.n, of="sequences") + untrained,
            )
        )
    return (
        f'<details id="{part_key(name)}"{" open" * opened}><summary>{shown(name)}: '
        f"{heads[name]:.2f}</summary><h3>{shown(name)}</h3>{table(('', 'measured'), rows)}"
        f"{_attention(found, name)}{_formation(found, name)}"
        + command(found.command("detect", named=False))
        + "</details>"
    )


def _mlp(found: BehaviourResults, name: str) -> str:
    mlps = found.mlps
    assert mlps is not None
    bounds = mlps.interval(name) or (None, None)
    of = f"{found.behaviour.case_name}s"
    rows = [("share that comes back", measured(mlps[name], *bounds, n=mlps.n_prompts, of=of))]
    return (
        f'<details id="{part_key(name)}"><summary>{shown(name)}: {mlps[name]:.2f}</summary>'
        f"<h3>{shown(name)}</h3>{table(('', 'measured'), rows)}"
        "<p>An MLP looks at one position at a time, so it has no attention to show.</p></details>"
    )


def attention_rows(one: Example, name: str) -> list[list[int]]:
    """Return a head's attention in hundredths, by query; of a query only the keys up to it."""
    layer, head = (int(part) for part in name.removeprefix("L").split("H"))
    assert one.attention is not None
    weights = (100 * one.attention[layer, head]).round().int().tolist()
    last = len(one.clean)
    return [row[: last - len(weights) + k + 1] for k, row in enumerate(weights)]


def _attention(found: BehaviourResults, name: str) -> str:
    """Return the attention from the last token of the first prompt; the script shows the others."""
    one = found.examples[0]
    if one.attention is None:
        return "<p>This model keeps no attention patterns.</p>"
    weights = attention_rows(one, name)[-1]
    tokens = "".join(
        f'<span class="token tint {strength(weight / 100)}">{shown(token)}<small>{weight}</small>'
        "</span>"
        for token, weight in zip(one.clean, weights, strict=True)
    )
    return (
        '<h4>Where it looks</h4><p class="small" data-about="attention">Attention from the last '
        "token of prompt 1, in hundredths.</p>"
        f'<p class="tokens" data-attention="{shown(name)}">{tokens}</p>'
    )


def _formation(found: BehaviourResults, name: str) -> str:
    """Return when a head got its scores: curves over checkpoints, with a table of the numbers."""
    numbers = [
        ("share that comes back", found.curves.get("heads"), name),
        ("induction score", found.curves.get("detectors"), f"induction {name}"),
        ("previous-token score", found.curves.get("detectors"), f"previous token {name}"),
    ]
    there = [
        (said, {one.step: one for one in curves.curve(number)})
        for said, curves, number in numbers
        if curves is not None and number in curves.names
    ]
    if not there:
        return ""
    steps = sorted({step for _, points in there for step in points})
    figure = svg.lines(
        [
            Line(said, [points[step].value if step in points else None for step in steps])
            for said, points in there
        ],
        [f"{step:,}" for step in steps],
        across="checkpoint (training step), not evenly spaced",
        up="score",
    )
    rows = [(f"{step:,}", *(point_text(points.get(step)) for _, points in there)) for step in steps]
    refused = found.curves["heads"].refused if "heads" in found.curves else ()
    note = (
        f'<p class="limit">No share at {count(len(refused), "checkpoint")} (steps '
        f"{listed(step for step, _ in refused)}): the model does not do it there "
        "yet, or the prompts are too few to tell.</p>"
        if refused
        else ""
    )
    return (
        f'<h4>When it formed</h4><div class="wide">{figure}</div>{note}<details><summary>the '
        "numbers</summary>"
        + table(("step", *(said for said, _ in there)), rows)
        + "</details>"
        + command(
            found.command(
                "emergence",
                f"{quote(f'heads:{found.bare_name}')} {found.options}".strip(),
                named=False,
            )
        )
    )


def point_text(one: TrajectoryPoint | None) -> str:
    """Return a number at a checkpoint as text."""
    return "" if one is None else measured(one.value, one.low, one.high)
