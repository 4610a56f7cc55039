"use strict";
// Sorts and filters the tables of a report page, keeps both in the address, and shows what is said of a point or a mark.
(() => {
  const form = document.getElementById("filters");
  const selects = [...form.querySelectorAll("select")];
  const FACTS = selects.map((select) => select.name);
  const none = document.getElementById("none");
  const tip = document.getElementById("tip");

  // --- tables: what is in them ---------------------------------------------------------------------------------------

  const tables = [...document.querySelectorAll("table[id]")].map((table) => {
    const heads = [...table.tHead.rows[0].cells];
    const keys = heads.map((head) => head.dataset.key);
    const common = JSON.parse(table.dataset.common);
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => {
      const facts = { ...common };
      keys.forEach((key, column) => {
        if (FACTS.includes(key)) facts[key] = row.cells[column].dataset.name ?? row.cells[column].textContent.trim();
      });
      const text = [...Object.values(common), ...[...row.cells].map((cell) => cell.textContent)].join(" ").toLowerCase();
      return { row, facts, text, values: [...row.cells].map(value) };
    });
    return { id: table.id, block: table.closest(".block"), body, heads, keys, rows, key: null, down: false };
  });

  function value(cell) {
    if ("number" in cell.dataset) return Number(cell.dataset.number);
    const text = cell.dataset.name ?? cell.textContent.trim();
    return text === "" || text === "–" ? null : text;
  }

  // --- sorting: rows without a value last, equal ones as the table had them ------------------------------------------

  function compare(a, b, down) {
    if (a === null || b === null) return (a === null) - (b === null);
    const both = typeof a === "number" && typeof b === "number";
    const order = both ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
    return down ? -order : order;
  }

  function sort(table, key, down) {
    const column = key === null ? -1 : table.keys.indexOf(key);
    Object.assign(table, { key: column < 0 ? null : key, down });
    const rows = [...table.rows];
    if (column >= 0) rows.sort((a, b) => compare(a.values[column], b.values[column], down));
    table.body.append(...rows.map((row) => row.row));
    table.heads.forEach((head, at) => {
      head.setAttribute("aria-sort", at !== column ? "none" : down ? "descending" : "ascending");
    });
  }

  for (const table of tables) {
    table.heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const key = table.keys[column];
        const again = table.key === key;
        sort(table, again && table.down ? null : key, again && !table.down);
        remember();
      });
    });
  }

  // --- filters, over all tables --------------------------------------------------------------------------------------

  for (const select of selects) {
    // In the order of the table that has most of them.
    const found = tables.map((table) => [...new Set(table.rows.map((row) => row.facts[select.name]))]);
    found.sort((a, b) => b.length - a.length);
    const options = [...new Set(found.flat())].filter((fact) => fact !== undefined && fact !== "–");
    if (options.every((option) => !Number.isNaN(Number(option)))) options.sort((a, b) => a - b);
    select.append(...options.map((option) => new Option(option, option)));
    select.parentElement.hidden = options.length < 2;
  }

  function filter() {
    const words = form.elements.q.value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = selects.filter((select) => select.value !== "");
    let shown = 0, all = 0;
    for (const table of tables) {
      let here = 0;
      for (const { row, facts, text } of table.rows) {
        const fits = wanted.every((select) => (facts[select.name] ?? select.value) === select.value)
          && words.every((word) => text.includes(word));
        row.classList.toggle("out", !fits);
        here += fits;
      }
      table.block.classList.toggle("empty", here === 0 && table.rows.length > 0);
      shown += here;
      all += table.rows.length;
    }
    form.elements.shown.value = shown === all ? `${all} rows` : `${shown} of ${all} rows shown`;
    none.hidden = shown > 0 || all === 0;
    form.querySelector("[type=reset]").disabled = wanted.length + words.length === 0;
  }

  form.addEventListener("input", () => { filter(); remember(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(() => { filter(); remember(); }));
  none.querySelector("button").addEventListener("click", () => { form.reset(); form.elements.q.focus(); });

  // --- the address: #?q=int8&batch=32&t1=-latency_p50_s, where a minus sorts downwards -------------------------------

  function remember() {
    const state = new URLSearchParams();
    for (const field of [form.elements.q, ...selects]) if (field.value !== "") state.set(field.name, field.value);
    for (const table of tables) if (table.key !== null) state.set(table.id, (table.down ? "-" : "") + table.key);
    const query = state.toString();
    history.replaceState(null, "", location.href.split("#")[0] + (query && `#?${query}`));
  }

  function recall() {
    if (!location.hash.startsWith("#?")) return;
    const state = new URLSearchParams(location.hash.slice(2));
    form.elements.q.value = state.get("q") ?? "";
    for (const select of selects) {
      select.value = state.get(select.name) ?? "";
      if (select.selectedIndex < 0) select.value = "";
    }
    for (const table of tables) {
      const key = state.get(table.id) ?? "";
      const down = key.startsWith("-") && !table.keys.includes(key);
      sort(table, key === "" ? null : down ? key.slice(1) : key, down);
    }
    filter();
  }

  addEventListener("hashchange", recall);

  // --- what is said of a footnote's mark or a point of a plot --------------------------------------------------------

  function said(element) {
    const note = element.closest?.("a.note");
    if (note) return [note, document.getElementById(note.hash.slice(1)).textContent];
    const point = element.closest?.("[data-said]");
    return point ? [point, point.dataset.said] : null;
  }

  let spoken = null;

  function show([element, text]) {
    spoken = element;
    tip.setAttribute("aria-live", element.matches("a") ? "off" : "polite");  // a mark is described by its footnote
    tip.textContent = text;
    tip.hidden = false;
    place();
  }

  function place() {
    const at = spoken.getBoundingClientRect(), box = tip.getBoundingClientRect();
    if (at.bottom < 0 || at.top > innerHeight) return hide();
    const middle = at.left + (at.width - box.width) / 2;
    const above = at.top - box.height - 6;
    tip.style.left = `${Math.max(8, Math.min(middle, document.documentElement.clientWidth - box.width - 8))}px`;
    tip.style.top = `${above > 4 ? above : Math.min(at.bottom + 6, innerHeight - box.height - 4)}px`;
  }

  function hide() { tip.hidden = true; }

  for (const note of document.querySelectorAll("a.note")) note.removeAttribute("title");

  for (const svg of document.querySelectorAll(".plots svg")) {
    const points = [...svg.querySelectorAll("g > title")].map((title) => {
      const point = title.parentElement;
      point.dataset.said = title.textContent;
      title.remove();
      return point;
    });
    const title = svg.querySelector(":scope > title");  // or the browser shows it wherever the pointer rests
    if (title) {
      svg.setAttribute("aria-label", title.textContent);
      svg.removeAttribute("aria-labelledby");
      title.remove();
    }
    if (points.length === 0) continue;
    let at = -1;
    svg.setAttribute("tabindex", "0");
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      at = at < 0 ? (step > 0 ? 0 : points.length - 1) : (at + step + points.length) % points.length;
      show(said(points[at]));
    });
    svg.addEventListener("blur", () => { at = -1; });
  }

  for (const event of ["pointerover", "focusin", "click"]) {
    document.addEventListener(event, ({ target }) => {
      const found = said(target);
      if (found) show(found);
      else hide();
    });
  }
  document.addEventListener("focusout", hide);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  addEventListener("scroll", () => { if (!tip.hidden) place(); }, { passive: true, capture: true });

  // --- commands to be copied -----------------------------------------------------------------------------------------

  for (const pre of document.querySelectorAll(".code > pre")) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(pre.textContent);
        button.textContent = "Copied";
      } catch {  // a page that may not write to it: select the text instead
        getSelection().selectAllChildren(pre);
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
    pre.before(button);
  }

  form.hidden = false;
  filter();
  recall();
})();
