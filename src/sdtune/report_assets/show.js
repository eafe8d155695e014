"use strict";
// The viewer takes its pictures from the table below it, so that without scripts (and in print) everything is still there, once.
(() => {
  const film = document.querySelector(".film"), viewer = document.querySelector(".viewer");
  const range = viewer.querySelector("input"), play = viewer.querySelector("button"), words = viewer.querySelector("output");
  const heads = [...film.querySelectorAll("thead th[data-words]")];
  const show = (i) => {
    range.value = i;
    for (const img of viewer.querySelectorAll("img")) {
      const from = film.querySelector(`[data-row="${img.dataset.row}"]`).children[i + 1].querySelector("img");
      img.src = from.src;
      img.alt = from.alt;
    }
    words.textContent = heads[i].dataset.words;
    range.setAttribute("aria-valuetext", heads[i].dataset.words);
    for (const row of film.rows) [...row.children].forEach((cell, k) => cell.classList.toggle("now", k === i + 1));
  };
  let timer = 0;
  const stop = () => { clearInterval(timer); timer = 0; play.textContent = "Play"; };
  range.addEventListener("input", () => { stop(); show(+range.value); });
  play.addEventListener("click", () => {
    if (timer) return stop();
    if (+range.value >= heads.length - 1) show(0);
    play.textContent = "Stop";
    timer = setInterval(() => { if (+range.value >= heads.length - 1) stop(); else show(+range.value + 1); }, 900);
  });
  viewer.hidden = false;
  show(Math.floor(heads.length / 2));
})();
// On paper nothing can be unfolded.
{
  let folded = [];
  addEventListener("beforeprint", () => { folded = [...document.querySelectorAll("details:not([open])")]; for (const d of folded) d.open = true; });
  addEventListener("afterprint", () => { for (const d of folded) d.open = false; });
}
