"use strict";
// A click, or Enter on a picture that has the focus, shows it large.
{
  const dialog = document.body.appendChild(document.createElement("dialog"));
  const [frame, words, close] = ["div", "p", "button"].map((tag) => dialog.appendChild(document.createElement(tag)));
  dialog.className = "zoom";
  dialog.setAttribute("aria-label", "The picture, enlarged");
  close.textContent = "Close";
  const zoom = (image) => {
    const map = image.closest(".heat"), large = (map ?? image).cloneNode(true); // a map lies over its picture
    for (const part of [large, ...large.children]) for (const name of ["role", "tabindex", "data-row"]) part.removeAttribute(name);
    frame.replaceChildren(large);
    words.textContent = image.alt;
    dialog.classList.toggle("drawing", !map && image.naturalWidth <= 128);
    dialog.showModal();
  };
  for (const image of document.querySelectorAll("main img")) {
    if (image.closest(".sliders")) continue; // there the mouse moves the bar
    image.tabIndex = 0;
    image.setAttribute("role", "button");
    image.addEventListener("click", () => zoom(image));
    image.addEventListener("keydown", (event) => { if (event.key === "Enter") zoom(image); });
  }
  dialog.addEventListener("click", () => dialog.close());
}
