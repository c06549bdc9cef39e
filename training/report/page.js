"use strict";
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  // Stills over time: one picture, a slider over the steps, a choice of the row (layer) that it shows.
  for (const box of all(".stills")) {
    const stills = JSON.parse(box.querySelector("script").textContent);
    const image = box.querySelector("img"), frame = box.querySelector(".still");
    const slider = box.querySelector("input[type=range]"), output = box.querySelector("output");
    const show = () => {
      const still = stills[slider.value];
      const row = Math.min(Number(box.querySelector("input[type=radio]:checked")?.value ?? 0), still.rows - 1);
      image.src = still.picture;
      image.alt = `Four views after step ${still.step}`;
      image.style.objectPosition = `0 ${still.rows > 1 ? (100 * row) / (still.rows - 1) : 0}%`;
      frame.style.aspectRatio = `${still.width} / ${still.height / still.rows}`;
      output.textContent = slider.ariaValueText = `step ${still.step}`;
    };
    box.addEventListener("input", show);
    show();
  }

  // Curves: the value under the pointer.
  for (const box of all(".curve")) {
    const points = JSON.parse(box.querySelector("script").textContent);
    const svg = box.querySelector("svg"), readout = box.querySelector(".readout");
    const cross = svg.querySelector(".cross"), dot = svg.querySelector(".dot"), before = readout.textContent;
    svg.addEventListener("pointermove", (event) => {
      const place = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      const near = points.reduce((a, b) => (Math.abs(b[0] - place.x) < Math.abs(a[0] - place.x) ? b : a));
      cross.setAttribute("x1", near[0]); cross.setAttribute("x2", near[0]);
      dot.setAttribute("cx", near[0]); dot.setAttribute("cy", near[1]);
      cross.style.visibility = dot.style.visibility = "visible";
      readout.textContent = `step ${near[2]}: ${near[3]}`;
    });
    svg.addEventListener("pointerleave", () => {
      cross.style.visibility = dot.style.visibility = "hidden";
      readout.textContent = before;
    });
  }

  // The model: its bytes are deflated in the page.
  const viewer = document.querySelector("model-viewer");
  if (viewer) {
    const fail = (why) => {
      viewer.hidden = true;
      const box = document.getElementById("no-viewer");
      box.hidden = false;
      box.firstElementChild.textContent = why;
    };
    const content = (id) =>
      new Blob([Uint8Array.from(atob(document.getElementById(id).textContent), (c) => c.charCodeAt(0))]);
    // The viewer recognises the file type by the end of the address.
    if (document.getElementById("environment"))
      viewer.environmentImage = `${URL.createObjectURL(content("environment"))}#environment.hdr`;
    viewer.addEventListener("error", () => fail("This browser shows no 3D here (is WebGL off?)."));
    if (typeof DecompressionStream === "undefined") fail("This browser is too old to unpack the model.");
    else
      new Response(content("model").stream().pipeThrough(new DecompressionStream("deflate")))
        .blob()
        .then((model) => { viewer.src = URL.createObjectURL(model); })
        .catch(() => fail("The model in this page could not be unpacked."));
  }

  // Videos start by themselves unless the user prefers reduced motion.
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches)
    for (const video of all("video")) video.play().catch(() => {});

  // Commands to copy.
  for (const button of all("button[data-copy]"))
    button.addEventListener("click", async () => {
      const text = button.previousElementSibling;
      try {
        await navigator.clipboard.writeText(text.textContent);
        button.textContent = "Copied";
        setTimeout(() => { button.textContent = "Copy"; }, 1500);
      } catch {
        getSelection().selectAllChildren(text);
      }
    });

  // The page of a running run: its age, and a reload every 20 seconds if that is switched on.
  const live = document.querySelector("[data-written]");
  if (live) {
    const age = document.getElementById("age"), watch = document.getElementById("watch");
    const tell = () => {
      const minutes = Math.floor((Date.now() - Number(live.dataset.written)) / 60000);
      age.textContent = minutes < 1 ? "written just now" : `written ${minutes} min ago`;
      if (minutes >= 60) age.textContent += "; the run may have been killed";
    };
    watch.checked = location.hash === "#watch";
    watch.addEventListener("change", () => {
      history.replaceState(null, "", watch.checked ? "#watch" : "#");
    });
    setInterval(() => { tell(); if (watch.checked) location.reload(); }, 20000);
    tell();
  }
})();
