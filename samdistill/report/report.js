"use strict";
(() => {
  const dialog = document.getElementById("zoom");
  const stage = document.getElementById("zoom-stage");
  let shown = null; // the case whose copy is on the stage
  let view = { x: 0, y: 0, scale: 1 };

  const place = () => {
    const stack = stage.firstElementChild;
    const size = `${100 * view.scale}%`; // not a transform: lines keep their width
    Object.assign(stack.style, { left: `${view.x}px`, top: `${view.y}px`, width: size, height: size });
  };

  const enlarge = (factor, x, y) => {
    const scale = Math.min(16, Math.max(1, view.scale * factor));
    const kept = scale / view.scale; // what lies under the pointer stays there
    view = scale === 1 ? { x: 0, y: 0, scale } : { x: x - (x - view.x) * kept, y: y - (y - view.y) * kept, scale };
    place();
  };

  const show = (figure) => {
    shown = figure;
    view = { x: 0, y: 0, scale: 1 };
    stage.replaceChildren(figure.querySelector(".stack").cloneNode(true));
    document.getElementById("zoom-title").textContent = figure.querySelector("b").textContent;
    document.getElementById("zoom-facts").textContent = figure.querySelector("figcaption span").textContent;
    if (!dialog.open) dialog.showModal();
  };

  const step = (by) => {
    const figures = [...shown.parentElement.children];
    show(figures[(figures.indexOf(shown) + by + figures.length) % figures.length]);
  };

  for (const gallery of document.querySelectorAll(".gallery")) {
    const cases = gallery.querySelector(".cases");
    cases.addEventListener("click", (event) => {
      const figure = event.target.closest(".case");
      if (figure) show(figure);
    });
    for (const box of gallery.querySelectorAll("input[data-layer]")) {
      box.addEventListener("change", () => {
        for (const image of cases.querySelectorAll(".layer"))
          if (image.dataset.layer === box.dataset.layer) image.toggleAttribute("hidden", !box.checked);
      });
    }
    const order = gallery.querySelector("select");
    if (order) order.addEventListener("change", () => {
      // A case without a score comes last either way.
      const score = (figure, none) => figure.dataset.score === "" ? none : Number(figure.dataset.score);
      const by = {
        lowest: (a, b) => score(a, 1e9) - score(b, 1e9),
        highest: (a, b) => score(b, -1e9) - score(a, -1e9),
        name: (a, b) => a.querySelector("b").textContent.localeCompare(b.querySelector("b").textContent),
      }[order.value];
      cases.append(...[...cases.children].sort(by));
    });
  }

  dialog.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button && "close" in button.dataset) dialog.close();
    else if (button) step(Number(button.dataset.step));
  });
  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    const box = stage.getBoundingClientRect();
    enlarge(Math.exp(-event.deltaY / 400), event.clientX - box.left, event.clientY - box.top);
  }, { passive: false });
  stage.addEventListener("pointermove", (event) => {
    if (!(event.buttons & 1) || view.scale === 1) return;
    view.x += event.movementX;
    view.y += event.movementY;
    place();
  });
  stage.addEventListener("dblclick", (event) => {
    const box = stage.getBoundingClientRect();
    enlarge(view.scale > 1 ? 0 : 3, event.clientX - box.left, event.clientY - box.top);
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("select, input")) return;
    if (event.key === "h" || event.key === "H") document.body.classList.toggle("peek");
    if (!dialog.open) return;
    const middle = [stage.clientWidth / 2, stage.clientHeight / 2];
    if (event.key === "ArrowRight") step(1);
    else if (event.key === "ArrowLeft") step(-1);
    else if (event.key === "+" || event.key === "=") enlarge(1.5, ...middle);
    else if (event.key === "-") enlarge(1 / 1.5, ...middle);
  });
})();
