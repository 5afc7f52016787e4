"use strict";
(() => {
  const grid = document.getElementById("grid");
  const find = document.getElementById("find");
  const sort = document.getElementById("sort");
  const bucket = document.getElementById("bucket");
  const shown = document.getElementById("shown");
  const nothing = document.getElementById("nothing");
  const chips = [...document.querySelectorAll(".chips button")];
  const cards = [...grid.children].map((node, order) => {
    const data = node.dataset;
    return {
      node, order,
      name: data.name.toLowerCase(),
      text: (data.name + "\n" + node.querySelector(".texts").textContent).toLowerCase(),
      flags: new Set(data.flags.split(" ")),
      bucket: data.bucket,
      scale: +data.scale, area: +data.area, aspect: +data.aspect, tokens: +data.tokens, kin: +data.kin,
    };
  });

  function compare(key, a, b) {
    return key === "name" || key === "bucket"
      ? a[key].localeCompare(b[key], undefined, { numeric: true })
      : a[key] - b[key];
  }

  function update() {
    const words = find.value.toLowerCase().trim();
    const wanted = chips.filter((chip) => chip.getAttribute("aria-pressed") === "true");
    let count = 0;
    for (const card of cards) {
      const fits =
        card.text.includes(words) &&
        (!bucket.value || card.bucket === bucket.value) &&
        wanted.every((chip) => card.flags.has(chip.dataset.flag));
      card.node.hidden = !fits;
      count += fits;
    }
    shown.textContent = count + " of " + cards.length + " shown";
    nothing.hidden = count > 0;
  }

  function reorder() {
    const [key, direction] = sort.value.split(":");
    const sign = direction === "down" ? -1 : 1;
    cards.sort((a, b) => sign * compare(key, a, b) || a.order - b.order);
    grid.append(...cards.map((card) => card.node));
  }

  let timer = 0;
  find.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(update, 120);
  });
  sort.addEventListener("change", reorder);
  bucket.addEventListener("change", update);
  for (const chip of chips) {
    chip.addEventListener("click", () => {
      chip.setAttribute("aria-pressed", chip.getAttribute("aria-pressed") !== "true");
      update();
    });
  }
  document.getElementById("tools").addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("click", (event) => {
    const tag = event.target.closest("[data-find]");
    if (tag) {
      find.value = find.value === tag.dataset.find ? "" : tag.dataset.find;
      update();
      document.getElementById("tools").scrollIntoView({ block: "start" });
    }
    // Whoever follows a link to a picture wants to see it, filtered out or not.
    const link = event.target.closest('a[href^="#p"]');
    const target = link && document.getElementById(link.hash.slice(1));
    if (target) target.hidden = false;
  });
  update();
})();
