  // ---- where the bytes are at the peak: components, in each its tensors; and the table of them
  // squarified layout (Bruls, Huizing, van Wijk 2000): one rectangle [x, y, width, height] for each size, in
  // order, its area in proportion; sizes descend and are above zero
  function squarify(sizes, x, y, width, height) {
    const placed = [];
    let left = sizes.reduce((a, b) => a + b, 0), from = 0;
    while (from < sizes.length) {
      const side = Math.min(width, height), scale = (width * height) / left;
      const worst = (sum, count) => Math.max((side * side * sizes[from] * scale) / (sum * scale) ** 2, (sum * scale) ** 2 / (side * side * sizes[from + count - 1] * scale));
      let count = 1, sum = sizes[from];
      while (from + count < sizes.length && worst(sum + sizes[from + count], count + 1) <= worst(sum, count)) sum += sizes[from + count++];
      const wide = width >= height, depth = from + count === sizes.length ? (wide ? width : height) : (sum * scale) / side;
      let along = 0;
      for (const size of sizes.slice(from, from + count)) {
        const long = (side * size) / sum;
        placed.push(wide ? [x, y + along, depth, long] : [x + along, y, long, depth]);
        along += long;
      }
      if (wide) { x += depth; width -= depth; } else { y += depth; height -= depth; }
      left -= sum; from += count;
    }
    return placed;
  }
  // [{name, bytes, tensors: [[name, bytes], ...]}] by component, the largest first; what the table has no row
  // for is one tensor of its own
  function grouped(rows, components) {
    const found = Object.entries(components).map(([name, bytes]) => {
      const tensors = rows.filter((r) => r.component === name && r.bytes > 0).map((r) => [r.name, r.bytes]);
      const rest = bytes - tensors.reduce((sum, t) => sum + t[1], 0);
      if (rest > 0) tensors.push(["smaller tensors", rest]);
      return { name, bytes, tensors: tensors.sort((a, b) => b[1] - a[1]) };
    });
    return found.filter((g) => g.bytes > 0).sort((a, b) => b.bytes - a.bytes);
  }
  const MOST_ROWS = 300;
  function drawRows(rows, now) {
    const count = (n, word) => n.toLocaleString("en") + " " + word;
    by("rows-note").textContent = (rows.length > MOST_ROWS ? "the " + MOST_ROWS + " largest of " + count(rows.length, "kinds of tensor") : count(rows.length, "kinds of tensor")) +
      " alive in " + label(now.moment) + ", " + gib(now.allocated) + " in all";
    const cells = (r) => [node("td", {}, breakable(r.name)), node("td", {}, r.shape.map((n) => n.toLocaleString("en")).join(" x ")), node("td", {}, r.dtype),
      node("td", { class: "n" }, r.count.toLocaleString("en")), node("td", { class: "n" }, r.bytes.toLocaleString("en")),
      node("td", {}, [node("span", { class: "key", style: "background:" + fill(r.component) }), label(r.component)]), node("td", {}, r.why)];
    by("rows").replaceChildren(...rows.slice(0, MOST_ROWS).map((r) => node("tr", { "data-component": r.component, "data-bytes": r.bytes }, cells(r))));
  }
  // a name that may break behind its dots
  const breakable = (name) => name.split(".").flatMap((part, i, all) => (i + 1 < all.length ? [part + ".", document.createElement("wbr")] : [part]));
  function drawTreemap(rows, now) {
    const own = Object.fromEntries(components(now).map((size, i) => [data.components[i], size]));
    const groups = grouped(rows, own), width = Math.max(280, by("treemap").clientWidth), height = width < 500 ? 420 : 380, all = groups.reduce((sum, g) => sum + g.bytes, 0);
    const svg = node("svg", { viewBox: "0 0 " + width + " " + height, role: "img", "aria-label": "Bytes at the peak by component and tensor" });
    const cut = (text, room) => (text.length * 6.8 <= room ? text : room < 34 ? "" : text.slice(0, Math.floor(room / 6.8) - 1) + "\u2026");
    squarify(groups.map((g) => g.bytes), 0, 0, width, height).forEach(([x, y, w, h], i) => {
      const group = groups[i], part = node("g", { class: "part" });
      squarify(group.tensors.map((t) => t[1]), x, y, w, h).forEach(([left, top, wide, tall], j) => {
        const [name, bytes] = group.tensors[j];
        part.append(node("rect", { x: left, y: top, width: wide, height: tall, fill: fill(group.name), "data-bytes": bytes },
          node("title", {}, label(group.name) + ", " + name + ": " + gib(bytes) + ", " + ((100 * bytes) / all).toFixed(1) + " %")));
        if (tall < 20) return;
        part.append(node("text", { x: left + 6, y: top + 16 }, cut(name, wide - 12)));
        if (tall >= 38) part.append(node("text", { x: left + 6, y: top + 31 }, cut(gib(bytes), wide - 12)));
      });
      part.append(node("rect", { x, y, width: w, height: h, class: "edge" }));
      svg.append(part);
    });
    const key = (g) => node("span", {}, [node("span", { class: "key", style: "background:" + fill(g.name) }), label(g.name) + " " + gib(g.bytes)]);
    by("treemap").replaceChildren(svg, node("p", { class: "legend muted" }, groups.map(key)));
  }
