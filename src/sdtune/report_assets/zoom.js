"use strict";
// A click, or Enter on a picture that has the focus, shows it large.
{
  const dialog = document.body.appendChild(document.createElement("dialog"));
  const [picture, words, close] = ["img", "p", "button"].map((tag) => dialog.appendChild(document.createElement(tag)));
  dialog.className = "zoom";
  dialog.setAttribute("aria-label", "The picture, enlarged");
  close.textContent = "Close";
  const zoom = (image) => {
    picture.src = image.src;
    picture.alt = words.textContent = image.alt;
    dialog.classList.toggle("drawing", image.naturalWidth <= 128);
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
