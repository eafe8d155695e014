"use strict";
// Sliders are made from the plain grid, so that without scripts (and in print) every picture is still there, once.
(() => {
  const sliders = document.querySelector(".sliders"), master = document.querySelector(".master"), plain = document.getElementById("plain");
  const pairs = [...plain.querySelectorAll(".pair")];
  if (!pairs.length) return;
  const element = (tag, name, parent) => parent.appendChild(Object.assign(document.createElement(tag), { className: name }));
  const made = pairs.map((pair) => {
    const [base, tuned] = pair.querySelectorAll("img");
    const box = element("div", "slider", sliders), stack = element("div", "stack", box);
    stack.append(base.cloneNode());
    element("div", "over", stack).append(tuned.cloneNode());
    element("div", "cut", stack);
    const range = Object.assign(element("input", "", stack), { type: "range", min: 0, max: 100 });
    range.setAttribute("aria-label", `${pair.dataset.prompt}, seed ${pair.dataset.seed}: base to the left, tuned to the right`);
    const set = (value) => {
      range.value = value; // which keeps it within 0 and 100
      range.setAttribute("aria-valuetext", `${range.value}% base`);
      box.style.setProperty("--cut", `${range.value}%`);
    };
    set(50);
    range.addEventListener("input", () => set(range.value));
    stack.addEventListener("pointermove", (event) => {
      if (event.pointerType !== "mouse") return;
      const area = stack.getBoundingClientRect();
      set(Math.round((100 * (event.clientX - area.left)) / area.width));
    });
    const words = element("p", "", box);
    words.textContent = pair.dataset.prompt;
    element("small", "", words).textContent = `seed ${pair.dataset.seed}`;
    return set;
  });
  const all = master.querySelector("input");
  all.addEventListener("input", () => made.forEach((set) => set(100 - all.value)));
  const details = document.createElement("details");
  details.className = "more";
  const summary = element("summary", "", details);
  summary.textContent = "All pairs side by side";
  plain.before(details);
  details.append(plain);
  for (const part of document.querySelectorAll(".sliding")) part.hidden = false;
})();
// On paper nothing can be unfolded.
{
  let folded = [];
  addEventListener("beforeprint", () => { folded = [...document.querySelectorAll("details:not([open])")]; for (const d of folded) d.open = true; });
  addEventListener("afterprint", () => { for (const d of folded) d.open = false; });
}
