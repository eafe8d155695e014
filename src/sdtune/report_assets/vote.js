"use strict";
(() => {
  const { format, ballot, pairs } = JSON.parse(document.getElementById("data").textContent);
  const get = (id) => document.getElementById(id), place = `sdtune-votes-${ballot}`;
  const buttons = [...document.querySelectorAll("[data-choice]")];
  let chosen = {}, at = 0;
  try { // a file's page may be denied any memory
    ({ chosen = {}, voter: get("voter").value = "" } = JSON.parse(localStorage.getItem(place) || "{}"));
  } catch { chosen = {}; }
  const keep = () => { try { localStorage.setItem(place, JSON.stringify({ chosen, voter: get("voter").value })); } catch { /* then not */ } };
  const show = () => {
    const done = Object.keys(chosen).length, pair = pairs[Math.min(at, pairs.length - 1)];
    get("prompt").textContent = at < pairs.length ? pair.prompt : "That was all. Thank you!";
    for (const side of ["left", "right"]) get(side).src = pair[side];
    for (const b of buttons) {
      b.disabled = at >= pairs.length;
      b.setAttribute("aria-pressed", String(at < pairs.length && chosen[pair.pair] === b.dataset.choice));
    }
    get("back").disabled = at === 0;
    get("save").disabled = done === 0;
    get("count").textContent = `${done} of ${pairs.length}`;
    get("done").value = done / pairs.length;
  };
  const choose = (choice) => {
    if (at >= pairs.length) return;
    chosen[pairs[at].pair] = choice;
    at += 1;
    keep();
    show();
    get("prompt").focus({ preventScroll: true }); // so that a screen reader says the next prompt
  };
  const back = () => { at = Math.max(0, at - 1); show(); };
  for (const b of buttons) b.addEventListener("click", () => choose(b.dataset.choice));
  get("back").addEventListener("click", back);
  get("voter").addEventListener("input", keep);
  addEventListener("keydown", (event) => {
    if (event.target.id === "voter" || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    const choice = { 1: "left", 2: "right", 3: "same" }[event.key];
    if (choice) choose(choice);
    if (event.key === "ArrowLeft") back();
  });
  get("save").addEventListener("click", () => {
    const voter = get("voter").value.trim(), votes = Object.entries(chosen).map(([pair, choice]) => ({ pair: Number(pair), choice }));
    const text = JSON.stringify({ format, ballot, voter, votes }, null, 1) + "\n", link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    link.download = `votes-${(voter || "anonymous").replace(/[^\p{L}\p{N}]+/gu, "-")}.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  });
  at = pairs.findIndex((pair) => !(pair.pair in chosen));
  if (at < 0) at = pairs.length;
  show();
})();
