  // ---- helpers
  const GIB = 2 ** 30;
  const gib = (n) => (n === 0 ? "0" : Math.abs(n) >= 0.1 * GIB ? (n / GIB).toLocaleString("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 }) + " GiB" : (n / 2 ** 20).toFixed(2) + " MiB");
  const shortGib = (n) => { const d = n < 100 * GIB ? 1 : 0; return (n / GIB).toLocaleString("en", { minimumFractionDigits: d, maximumFractionDigits: d }); };
  const label = (name) => ({ optimizer_states: "optimizer states", load_peak: "load peak", optimizer_step: "optimizer step" })[name] || name.replaceAll("_", " ");
  const by = (id) => document.getElementById(id);
  const fill = (name) => "var(--" + name + ")";
  function node(tag, attributes, content) {
    const svg = ["svg", "rect", "line", "text", "polyline", "polygon", "g", "title"].includes(tag);
    const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
    for (const key in attributes || {}) made.setAttribute(key, attributes[key]);
    if (typeof content === "string" || typeof content === "number") made.textContent = content;
    else if (content) made.append(...[content].flat());
    return made;
  }
  // a command that breaks between its words alone
  const typed = (text) => node("code", {}, text.split(" ").flatMap((word, i) => [i ? " " : "", node("span", { class: "word" }, word)]));
  const BATCHES = [1, 2, 4, 8, 16, 32, 64];
  const SEQUENCES = [];
  for (let s = 256; s <= data.longest; s *= 2) if (s >= data.shortest) SEQUENCES.push(s);
  if (SEQUENCES.length === 0) SEQUENCES.push(data.longest);
  const shortest = Math.min(Math.max(128, data.shortest), data.longest);
  const toSeq = (x) => (x >= 1000 ? data.longest : Math.max(data.shortest, Math.round((shortest * (data.longest / shortest) ** (x / 1000)) / 8) * 8));
  const fromSeq = (s) => Math.round((1000 * Math.log(Math.max(1, s / shortest))) / Math.log(data.longest / shortest || 2));
