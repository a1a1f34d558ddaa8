"use strict";
// Sorts tables, shows tips, and saves figures; without it the page shows all the same.
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const SCALES = { "µs": 1e-3, ms: 1, s: 1e3, B: 1, kB: 1e3, MB: 1e6, GB: 1e9, k: 1e3, M: 1e6, G: 1e9 };

  // A cell as what it sorts by: a number with its unit, or a word.
  const key = (cell) => {
    const text = cell.textContent.trim();
    const found = text.match(/^[≤<]?\s*([+-]?\d+(?:\.\d+)?)(?:[eE]([+-]?\d+))?\s*(µs|ms|s|kB|MB|GB|B|k|M|G)?(?![A-Za-z])/);
    if (!found) return text === "–" || text === "" ? null : text.toLowerCase();
    return Number(`${found[1]}e${found[2] || 0}`) * (SCALES[found[3]] || 1);
  };

  const sort = (table, column, down) => {
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => [key(row.cells[column]), row]);
    rows.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null); // what is not known comes last
      if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
      const order = typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true });
      return down ? -order : order;
    });
    body.append(...rows.map(([, row]) => row));
    all("th", table).forEach((head, index) => {
      if (index === column) head.setAttribute("aria-sort", down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
  };

  for (const table of all("table")) {
    if (table.tBodies[0].rows.length < 2) continue;
    all("th", table).forEach((head, column) => {
      const words = head.textContent.trim();
      if (!words) return;
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = words;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const first = table.tBodies[0].rows[0].cells[column];
        const before = head.getAttribute("aria-sort");
        sort(table, column, before ? before === "ascending" : typeof key(first) === "number");
      });
    });
  }

  const tip = document.createElement("div");
  tip.id = "tip";
  tip.setAttribute("role", "tooltip");
  tip.hidden = true;
  document.body.append(tip);
  // A mark's own title would be shown by the browser beside ours.
  for (const title of all("svg * > title")) {
    title.parentElement.setAttribute("data-tip", title.textContent);
    title.remove();
  }
  const show = (target, x, y) => {
    const told = target && target.closest ? target.closest("[data-tip]") : null;
    tip.hidden = !told;
    if (!told) return;
    tip.textContent = told.getAttribute("data-tip");
    const width = document.documentElement.clientWidth;
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(8, Math.min(x + 14, width - box.width - 8)) + window.scrollX}px`;
    tip.style.top = `${(y + 18 + box.height > window.innerHeight ? y - box.height - 12 : y + 18) + window.scrollY}px`;
  };
  document.addEventListener("pointerover", (event) => show(event.target, event.clientX, event.clientY));
  document.addEventListener("pointermove", (event) => show(event.target, event.clientX, event.clientY));
  document.addEventListener("focusin", (event) => {
    const box = event.target.getBoundingClientRect();
    show(event.target, box.left, box.top);
  });
  document.addEventListener("focusout", () => { tip.hidden = true; });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });

  const save = (name, blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  };
  const quoted = (text) => (/[",\n]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text);
  const csv = (table) => all("tr", table)
    .map((row) => [...row.cells].map((cell) => quoted(cell.textContent.trim())).join(",")).join("\n") + "\n";
  const LOOKS = ["fill", "stroke", "stroke-width", "stroke-linecap", "stroke-dasharray", "opacity", "font", "paint-order"];
  // The picture as it looks now, colours and fonts written into it.
  const drawn = (svg) => {
    const copy = svg.cloneNode(true);
    const from = all("*", svg);
    all("*", copy).forEach((mark, index) => {
      const style = getComputedStyle(from[index]);
      for (const look of LOOKS) mark.style.setProperty(look, style.getPropertyValue(look));
    });
    const [, , width, height] = svg.getAttribute("viewBox").split(" ").map(Number);
    copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
    copy.setAttribute("width", width);
    copy.setAttribute("height", height);
    copy.style.background = getComputedStyle(svg.closest("section")).backgroundColor;
    return { text: new XMLSerializer().serializeToString(copy), width, height };
  };
  const png = (picture, name) => {
    const image = new Image();
    image.onload = () => {
      const canvas = document.createElement("canvas");
      canvas.width = 2 * picture.width;
      canvas.height = 2 * picture.height;
      canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
      canvas.toBlob((blob) => save(name, blob), "image/png");
    };
    image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(picture.text)}`;
  };
  const SAVES = {
    SVG: (figure) => save(`${figure.dataset.name}.svg`, new Blob([drawn(seen(figure)).text], { type: "image/svg+xml" })),
    PNG: (figure) => png(drawn(seen(figure)), `${figure.dataset.name}.png`),
    CSV: (figure) => save(`${figure.dataset.name}.csv`, new Blob([csv(figure.querySelector("table"))], { type: "text/csv" })),
  };
  const seen = (figure) => all("svg", figure).find((svg) => svg.getBoundingClientRect().width > 0);
  for (const figure of all("figure[data-name]")) {
    const row = document.createElement("div");
    row.className = "saves";
    for (const [kind, act] of Object.entries(SAVES)) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = kind;
      button.setAttribute("aria-label", `Save ${figure.dataset.name} as ${kind}`);
      button.addEventListener("click", () => act(figure));
      row.append(button);
    }
    figure.insertBefore(row, figure.querySelector("details"));
  }
})();
