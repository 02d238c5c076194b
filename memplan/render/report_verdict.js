  // ---- the verdict of planner/answers/verdict.py Need.word: fits, tight or no
  const high = (p, card) => device(p, card) + Math.round(reserved(p) * data.errors[p.key]);
  // tensors alone that are too large need no replay
  const fits = (p, card) => p.allocated + card.context <= card.usable && high(p, card) <= card.usable;
  function bare(p, card) {
    if (p.word) return p.word; // as traced
    if (fits(p, card)) return "fits";
    const room = card.usable - card.context, error = data.errors[p.key];
    if (p.allocated * (1 - error) > room) return "no";
    const run = runAt(p);
    if (!run) return device(p, card) - Math.round(reserved(p) * error) <= card.usable ? "tight" : "no";
    const capacity = Math.round(room / (1 - error));
    return capacity >= reserved(p) || replay(run, capacity) ? "tight" : "no";
  }
  const missingOn = (card) => [...new Set([...data.missing, ...card.missing])];
  // "least" where something is not counted, so that only "no" would stand
  const wordOf = (p, card) => {
    const word = bare(p, card);
    return word !== "no" && missingOn(card).length > 0 ? "least" : word;
  };
  const says = (p, card) => data.words[wordOf(p, card)].join(" ");
