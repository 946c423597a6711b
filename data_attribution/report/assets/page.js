"use strict";
// What a page can do beyond being read. Texts of documents are only ever set as text, and nothing
// is fetched: the page's policy allows this script and no other.
//
// A choice: links `a[data-pick=GROUP]` lead to `#ID`. The parts of a group stand in
// `[data-group=GROUP]`, one of which is shown at a time; what has `data-with=ID` is shown while ID
// is chosen. Without this script the links lead to the parts, which are all there. Paper has all
// parts of a group with `data-paper`, and the chosen one of any other.
(() => {
  const root = document.documentElement;
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];
  root.classList.add("js");

  // --- copying commands, and light or dark -----------------------------------------------------
  const said = document.createElement("div");
  said.setAttribute("role", "status");
  said.className = "status";
  document.body.append(said);

  function button(label, act) {
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = label;
    made.addEventListener("click", () => act(made));
    return made;
  }

  function copyBySelection(code) {
    const range = document.createRange();
    range.selectNodeContents(code);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    return document.execCommand("copy");
  }

  async function copy(code, made) {
    let done = false;
    try {
      await navigator.clipboard.writeText(code.textContent);
      done = true;
    } catch {
      done = copyBySelection(code);
    }
    made.textContent = done ? "Copied" : "Press Ctrl+C";
    said.textContent = done ? "The command was copied." : "The command is selected.";
    setTimeout(() => { made.textContent = "Copy"; }, 1500);
  }

  for (const code of all(".command code")) {
    const made = button("Copy", (one) => copy(code, one));
    made.setAttribute("aria-label", `Copy the command ${code.textContent.slice(0, 80)}`);
    code.after(made);
  }

  const dark = () => (root.dataset.theme
    ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);
  const theme = button("", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    name();
  });
  function name() { theme.textContent = dark() ? "Light" : "Dark"; }
  name();
  theme.id = "theme";
  document.querySelector(".bar > div").append(theme);

  // --- the panel that is in view ----------------------------------------------------------------
  const links = new Map(all(".bar nav a").map((one) => [one.getAttribute("href").slice(1), one]));
  const seen = new IntersectionObserver((changes) => {
    for (const { target, isIntersecting } of changes) {
      const link = links.get(target.id);
      if (!link || !isIntersecting) continue;
      for (const one of links.values()) one.removeAttribute("aria-current");
      link.setAttribute("aria-current", "true");
    }
  }, { rootMargin: "-30% 0px -60% 0px" });
  for (const panel of all(".panel")) seen.observe(panel);

  // --- attention: the weights of a head from any token of any prompt ------------------------------
  const attention = JSON.parse(document.getElementById("data").textContent).attention;
  const at = { prompt: 0, query: -1 };

  function token(text, weight, key) {
    const made = button(text, () => { at.query = key; drawAll(key); });
    made.className = "token tint";
    const level = Math.min(Math.round(weight * 0.09 + 0.01), 9);
    if (level > 0) made.classList.add(`s${level}`);
    const number = document.createElement("small");
    number.textContent = weight < 0 ? "–" : String(weight);
    made.append(number);
    return made;
  }

  function draw(box, focused) {
    const { tokens, heads } = attention[at.prompt];
    const weights = heads[box.dataset.attention];
    // Of very long prompts only the last token's weights are there.
    const whole = weights.length === tokens.length;
    const query = whole && at.query >= 0 ? at.query : tokens.length - 1;
    const row = weights[whole ? query : 0];
    box.replaceChildren(...tokens.map((text, key) => {
      const made = token(text, key < row.length ? row[key] : -1, key);
      made.disabled = !whole;
      made.setAttribute("aria-pressed", String(key === query));
      return made;
    }));
    box.previousElementSibling.textContent = `Attention from “${tokens[query].trim()}”, token `
      + `${query + 1} of prompt ${at.prompt + 1}, in hundredths.`;
    if (whole) {
      const hint = document.createElement("span");
      hint.className = "screen";
      hint.textContent = " Choose another token.";
      box.previousElementSibling.append(hint);
    }
    if (focused !== undefined && box.offsetParent) box.children[focused].focus();
  }

  function drawAll(focused) {
    for (const box of all("[data-attention]")) draw(box, focused);
  }

  if (attention) {
    document.addEventListener("chosen", ({ detail }) => {
      if (detail.group !== "prompt") return;
      at.prompt = Number(detail.id.replace("prompt-", ""));
      at.query = -1;
      drawAll();
    });
    drawAll();
  }

  // --- choosing ---------------------------------------------------------------------------------
  function choose(group, id) {
    const parts = all("[data-group]").filter((one) => one.dataset.group === group)
      .flatMap((one) => [...one.children]);
    if (!parts.some((one) => one.id === id)) return;
    const ids = new Set(parts.map((one) => one.id));
    for (const part of parts) {
      part.hidden = part.id !== id;
      if (part.tagName === "DETAILS") part.open = part.id === id;
    }
    for (const one of all("[data-with]")) {
      if (ids.has(one.dataset.with)) one.classList.toggle("off", one.dataset.with !== id);
    }
    for (const link of all("a[data-pick]")) {
      if (link.dataset.pick !== group) continue;
      const here = link.getAttribute("href") === `#${id}`;
      link.setAttribute("aria-pressed", String(here));
      if (link.closest(".grid")) link.tabIndex = here ? 0 : -1;
    }
    document.dispatchEvent(new CustomEvent("chosen", { detail: { group, id } }));
  }

  for (const link of all("a[data-pick]")) {
    link.setAttribute("role", "button");
    const act = (event) => {
      event.preventDefault();
      const id = link.getAttribute("href").slice(1);
      choose(link.dataset.pick, id);
      const part = document.getElementById(id);
      if (!part) return;
      const { top } = part.getBoundingClientRect();
      const text = link.closest("[data-stay]");  // stays in view while the part is beside it
      const beside = text && top < text.getBoundingClientRect().bottom;
      if (top > innerHeight * 0.8 && !beside) part.scrollIntoView({ block: "nearest" });
    };
    link.addEventListener("click", act);
    link.addEventListener("keydown", (event) => { if (event.key === " ") act(event); });
  }
  // Pointing at a link in `[data-peek=GROUP]`, or focusing it, chooses its part, until a click pins
  // one; a second click on it, or Escape, lets it go.
  for (const box of all("[data-peek]")) {
    let pinned = "";
    const pin = (id) => {
      pinned = id;
      for (const one of all("a[data-pick]", box)) {
        one.classList.toggle("pinned", id !== "" && one.getAttribute("href") === `#${id}`);
      }
      said.textContent = id ? "Pinned." : "No longer pinned.";
    };
    const peek = ({ target }) => {
      const link = target.closest("a[data-pick]");
      if (link && !pinned) choose(box.dataset.peek, link.getAttribute("href").slice(1));
    };
    box.addEventListener("pointerover", peek);
    box.addEventListener("focusin", peek);
    box.addEventListener("click", ({ target }) => {
      const link = target.closest("a[data-pick]");
      const id = link ? link.getAttribute("href").slice(1) : "";
      if (link) pin(id === pinned ? "" : id);
    });
    document.addEventListener("keydown", ({ key }) => { if (key === "Escape" && pinned) pin(""); });
  }
  for (const parts of all("[data-group]")) {
    parts.classList.add("chosen");
    const first = [...parts.children].find((one) => one.open) || parts.children[0];
    if (first) choose(parts.dataset.group, first.id);
  }

  // Arrow keys move within a grid, Home and End to the ends of its row.
  const MOVES = {
    ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0],
    Home: [0, -1e6], End: [0, 1e6],
  };
  for (const grid of all(".grid")) {
    const rows = all("tr", grid).map((row) => all("a", row)).filter((row) => row.length);
    grid.addEventListener("keydown", (event) => {
      const move = MOVES[event.key];
      const at = rows.findIndex((row) => row.includes(document.activeElement));
      if (!move || at < 0) return;
      event.preventDefault();
      const row = rows[Math.min(Math.max(at + move[0], 0), rows.length - 1)];
      const place = rows[at].indexOf(document.activeElement) + move[1];
      row[Math.min(Math.max(place, 0), row.length - 1)].focus();
    });
  }

  // What scrolls can be reached without a mouse.
  function reachScrollers() {
    for (const one of all(".wide, .text, .cards")) {
      const scrolls = one.scrollWidth > one.clientWidth || one.scrollHeight > one.clientHeight;
      if (scrolls) one.tabIndex = 0;
      else one.removeAttribute("tabindex");
    }
  }
  reachScrollers();
  addEventListener("resize", reachScrollers);
  document.addEventListener("chosen", reachScrollers);
  document.addEventListener("toggle", reachScrollers, true);

  // On paper everything that is chosen is open, and every part of a group with `data-paper`.
  addEventListener("beforeprint", () => {
    for (const one of all("details:not([hidden]), [data-paper] > details")) one.open = true;
  });
})();
