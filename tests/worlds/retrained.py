"""A proof made up of the numbers of trainings that never were."""


def proof_of(parent: str) -> dict:
    """Return the result of two trainings of a run, as `openbook counterfactual --out` writes it."""

    def row(setting: str, recall: float) -> dict:
        return {
            "setting": setting, "behaviour": "lookup", "n": 12, "recall": recall,
            "recall low": max(recall - 0.2, 0.0), "recall high": min(recall + 0.2, 1.0),
            "log-prob": recall - 1.0,
        }  # fmt: skip

    def effect(name: str, related: bool, change: float) -> dict:
        return {
            "question": name, "unit": "nats of log-probability", "related": related,
            "before": -0.1, "after": -0.1 + change, "controls": [-0.02, 0.01], "effect": change,
            "low": change - 0.3, "high": change + 0.3, "noise": 0.1, "within noise": not related,
            "n": 12, "seeds": 2,
        }  # fmt: skip

    settings = ("full run", "without the documents", "without 3 matched random, seed 0")
    rows = [row(*one) for one in zip(settings, (1.0, 0.1, 0.95), strict=True)]
    effects = [effect("lookup", True, -4.0), effect("other", False, 0.02)]
    return {
        "parent": parent, "named": [1], "removed": [1, 2, 3], "control": [[4, 5, 6], [7, 8, 9]],
        "rows": rows, "effects": effects,
    }  # fmt: skip
