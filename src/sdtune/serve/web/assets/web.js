// What the pages do in the browser without asking the server: sliders, dropped files, painted masks.
"use strict";
window.sdtune = {};

// ---- a slider: the range input under the finger moves the cut
{
  const set = (input, value) => {
    input.value = value;
    input.setAttribute("aria-valuetext", `${input.value}% original`);
    input.closest(".slider").style.setProperty("--cut", `${input.value}%`);
  };
  document.addEventListener("input", (event) => event.target.matches?.(".slider input") && set(event.target, event.target.value));
  document.addEventListener("pointermove", (event) => {
    const stack = event.pointerType === "mouse" && event.target.closest?.(".slider .stack");
    if (!stack) return;
    const area = stack.getBoundingClientRect();
    set(stack.querySelector("input"), Math.round((100 * (event.clientX - area.left)) / area.width));
  });
}

// ---- files dropped on the page go to the uploader that asks for them with data-drop, a selector; the nearest place wins
{
  const uploader = (target) => {
    const all = [...document.querySelectorAll("[data-drop]")];
    const fits = all.filter((u) => target.closest?.(u.dataset.drop));
    return fits.find((u) => u.dataset.drop !== "body") ?? fits[0];
  };
  addEventListener("dragover", (event) => {
    if (![...(event.dataTransfer?.types ?? [])].includes("Files")) return;
    event.preventDefault(); // or the browser opens the file in place of the page
    document.body.classList.toggle("dropping", Boolean(uploader(event.target)));
  });
  addEventListener("dragleave", (event) => event.relatedTarget || document.body.classList.remove("dropping"));
  addEventListener("drop", (event) => {
    document.body.classList.remove("dropping");
    if (!event.dataTransfer?.files.length) return;
    event.preventDefault();
    const found = uploader(event.target);
    if (found) getElement(Number(found.id.slice(1))).$refs.qRef.addFiles(event.dataTransfer.files);
  });
}

// ---- a mask: white where the brush was. Sent as an upload of its own; the element then hears "painted" with its id
sdtune.paint = (id) => {
  const board = getHtmlElement(id);
  const picture = new Image();
  picture.onload = () => {
    const [shown, mask] = [0, 1].map(() => Object.assign(document.createElement("canvas"), { width: picture.width, height: picture.height }));
    const card = board.closest(".painter"), scale = Math.max(1, Math.min(8, Math.floor(512 / picture.width)));
    shown.style.width = `${picture.width * scale}px`;
    shown.setAttribute("aria-label", "Paint with the pointer; without one, choose a mask file instead");
    shown.setAttribute("role", "img");
    const brush = card.querySelector("[data-brush]"), ink = mask.getContext("2d"), view = shown.getContext("2d");
    const draw = () => {
      view.globalAlpha = 1;
      view.drawImage(picture, 0, 0);
      view.globalAlpha = 0.55;
      view.globalCompositeOperation = "source-over";
      view.drawImage(tinted(), 0, 0);
    };
    const tint = document.createElement("canvas");
    const tinted = () => {
      Object.assign(tint, { width: mask.width, height: mask.height });
      const on = tint.getContext("2d");
      on.drawImage(mask, 0, 0);
      on.globalCompositeOperation = "source-in";
      on.fillStyle = "#e0457b";
      on.fillRect(0, 0, tint.width, tint.height);
      return tint;
    };
    const clear = () => { ink.clearRect(0, 0, mask.width, mask.height); draw(); };
    const at = (event) => { const area = shown.getBoundingClientRect(); return [(event.offsetX * mask.width) / area.width, (event.offsetY * mask.height) / area.height]; };
    let last = null;
    const stroke = (event) => {
      if (!last) return;
      const now = at(event);
      Object.assign(ink, { strokeStyle: "#fff", lineCap: "round", lineWidth: (brush.value / 100) * mask.width * 0.5 });
      ink.beginPath(); ink.moveTo(...last); ink.lineTo(...now); ink.stroke();
      last = now;
      draw();
    };
    shown.addEventListener("pointerdown", (event) => { shown.setPointerCapture(event.pointerId); last = at(event); stroke(event); });
    shown.addEventListener("pointermove", stroke);
    shown.addEventListener("pointerup", () => { last = null; });
    card.querySelector("[data-clear]").addEventListener("click", clear);
    card.querySelector("[data-use]").addEventListener("click", async () => {
      const whole = Object.assign(document.createElement("canvas"), { width: mask.width, height: mask.height });
      const on = whole.getContext("2d");
      on.fillRect(0, 0, whole.width, whole.height);
      on.drawImage(mask, 0, 0);
      const file = await new Promise((done) => whole.toBlob(done, "image/png"));
      const answer = await fetch("/api/uploads", { method: "POST", body: file, headers: { "content-type": "image/png" } });
      const told = await answer.json();
      if (answer.ok) board.dispatchEvent(new CustomEvent("painted", { detail: told.id }));
      else alert(told.error.message);
    });
    board.replaceChildren(shown);
    draw();
  };
  picture.src = board.dataset.picture;
};

// Whether the text is on the clipboard. Where the address is no secure one (http of another machine), browsers know the old way alone.
async function sdtuneCopy(text) {
  try { await navigator.clipboard.writeText(text); return true; } catch { /* the old way */ }
  const field = document.createElement("textarea");
  field.value = text;
  field.style.cssText = "position: fixed; opacity: 0";
  document.body.append(field);
  field.select();
  try { return document.execCommand("copy"); } catch { return false; } finally { field.remove(); }
}
