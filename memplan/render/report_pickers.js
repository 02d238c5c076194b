  // ---- the pickers: what they offer, the structure that they choose, and what this file does not hold
  const SERVED = Boolean(data.served);
  const PICKERS = ["method", "checkpointing", "loss", "attention"];
  const WORDS = {
    checkpointing: { none: "none", non_reentrant: "on", reentrant: "on (reentrant)" },
    loss: { full: "full logits", chunked: "chunked", fused: "fused (Liger, cut cross-entropy)" },
    attention: { flash_attention_2: "FlashAttention 2" },
  };
  const wordFor = (name, value) => (WORDS[name] || {})[value] || value;
  const cardOf = (name) => data.cards.find((c) => c.name === name);
  const asKey = (chosen) => [...PICKERS.map((name) => chosen[name]), cardOf(chosen.card).kernels].join("|");
  // the structure of a state; of a method without a backward, whatever checkpointing says; null where the file has none
  function keyOf(chosen) {
    const able = data.trains[chosen.method] === "nothing" ? data.offered.checkpointing : [chosen.checkpointing];
    return able.map((checkpointing) => asKey({ ...chosen, checkpointing })).find((key) => data.keys.includes(key)) || null;
  }
  // why a state cannot run, as far as the file knows
  function refusal(chosen) {
    const why = data.refused[asKey(chosen)];
    if (why !== undefined) return why;
    const asked = ["loss", "attention"].every((name) => chosen[name] === data.state[name]);
    return asked ? cardOf(chosen.card).cannot : null;
  }
  const rankOf = (chosen, key = keyOf(chosen)) => data.fixed[key] ?? chosen.rank;
  function shown(chosen) {
    const key = keyOf(chosen), found = key && at(key, chosen.batch, chosen.seq, rankOf(chosen, key));
    return found && data.traced && asAsked(chosen) ? asTraced(found) : found;
  }

  const SIZES = [[0, "below 8 GiB"], [7.4, "8 GB"], [9.5, "10 to 12 GB"], [14, "16 GB"], [18, "20 and 24 GB"], [28, "32 GB"], [36, "40 to 64 GB"], [68, "80 GB and more"]];
  function fillPickers() {
    for (const name of PICKERS) for (const value of data.offered[name]) by(name).append(node("option", { value }, wordFor(name, value)));
    const groups = SIZES.map(([, words]) => node("optgroup", { label: words }));
    for (const card of data.cards) groups[SIZES.findLastIndex(([from]) => card.usable >= from * GIB)].append(node("option", { value: card.name }));
    if (SERVED) fillServed();
    by("card").append(...groups.filter((group) => group.children.length));
  }
  // the pickers of a page that memplan ui serves: what they change is computed there
  function fillServed() {
    const choose = (id, values, value) => { by(id).append(...values.map((each) => node("option", { value: each }, each))); by(id).value = value; };
    for (const label of document.querySelectorAll(".served")) label.hidden = false;
    by("models").append(...data.served.models.map((value) => node("option", { value })));
    by("model").value = data.model;
    choose("recipe", data.served.recipes, data.recipe);
    choose("optimizer", data.served.optimizers, data.served.optimizer);
    const held = data.offered.method;
    by("method").append(...data.served.methods.filter((name) => !held.includes(name)).map((value) => node("option", { value }, value)));
    by("model").addEventListener("change", () => request({ model: by("model").value }));
    by("recipe").addEventListener("change", () => request({ recipe: by("recipe").value, checkpointing: "", loss: "", attention: "" }));
    by("optimizer").addEventListener("change", () => request({ optimizer: by("optimizer").value }));
  }
  // asks memplan ui for the page of a state with other fields; empty: what the method and the recipe choose
  function request(fields, chosen = state) {
    const known = data.offered.method.includes(chosen.method), rank = data.ranks[chosen.method];
    const asked = { model: data.model, method: chosen.method, gpu: chosen.card, recipe: data.recipe, batch: chosen.batch, seq: chosen.seq, ...data.served.said };
    if (known) Object.assign(asked, { checkpointing: chosen.checkpointing, loss: chosen.loss, attention: chosen.attention });
    if (rank) asked[rank.startsWith("--set") ? "init_rank" : "rank"] = chosen.rank;
    Object.assign(asked, fields);
    document.body.dataset.asked = "1";
    location.assign("/?" + new URLSearchParams(Object.entries(asked).filter(([, value]) => value !== "")));
  }
  // marks what cannot run, and what this file does not hold, beside the rest of the state
  function markPickers() {
    const mark = (option, chosen, text) => {
      const why = refusal(chosen), held = option.selected || keyOf(chosen) !== null;
      option.textContent = text + (why ? ": cannot run" : held ? "" : SERVED ? ": computed when chosen" : ": not in this file");
      option.title = why || "";
      option.disabled = Boolean(why) && !option.selected;
    };
    for (const name of PICKERS) for (const option of by(name).options) mark(option, { ...state, [name]: option.value }, wordFor(name, option.value));
    for (const option of by("card").options) mark(option, { ...state, card: option.value }, option.value + " (" + gib(cardOf(option.value).usable) + ")");
    const fixed = data.fixed[keyOf(state)];
    by("rank").disabled = data.trains[state.method] !== "adapter" || fixed !== undefined;
    by("rank-label").title = fixed === undefined ? "" : "Fixed at " + fixed + ": 8-bit optimizer states and ZeRO's buckets round each tensor's size by its own rank, so that another rank needs a page of its own (--rank).";
    by("rank-value").textContent = (fixed ?? state.rank) + (fixed === undefined ? "" : " (fixed)");
  }
  function drawBeyond() {
    const why = refusal(state), text = command(state);
    document.body.classList.add("beyond");
    document.body.dataset.beyond = why ? "refused" : "absent";
    by("verdict").className = "verdict tight";
    by("verdict").replaceChildren(node("span", { class: "pill" }, why ? "cannot run on " + state.card : "not in this file"));
    by("beyond").replaceChildren(node("h2", {}, why ? "This cannot run" : "This file does not hold that setup"),
      node("p", {}, why || "It holds " + data.keys.length + " of the combinations that the pickers offer, as many as " + (data.complete ? "differ for this model" : "400 kB allow") + ". The command for this one:"),
      ...(why ? [] : [node("p", {}, typed(text))]));
    if (SERVED && !why) {
      by("verdict").replaceChildren(node("span", { class: "pill" }, "asking memplan ui"));
      by("beyond").replaceChildren(node("p", {}, "memplan ui computes this setup: a few seconds."));
      request({});
    }
    for (const name of ["device", "moment", "verdict", "close"]) delete document.body.dataset[name];
  }
