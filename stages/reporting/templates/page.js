"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const one = (selector, root = document) => root.querySelector(selector);
  const gallery = one("#gallery");
  const cards = new Map(all(".card").map((card) => [card.dataset.block, card]));
  const modelOrder = all(".map-frame.wide-only [data-block]").map((cell) => cell.dataset.block);
  const state = { pair: one("#pair").value, mode: (one("[data-mode]") || { dataset: {} }).dataset.mode };

  // Light and dark: as the system says, until someone presses the button.
  one("#theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme === "auto" ? matchMedia("(prefers-color-scheme: dark)").matches : root.dataset.theme === "dark";
    root.dataset.theme = dark ? "light" : "dark";
  });

  const slide = (slider) => slider.closest(".compare").style.setProperty("--split", slider.value + "%");
  all(".compare input").forEach((slider) => slider.addEventListener("input", () => slide(slider)));

  const press = (buttons, pressed) => buttons.forEach((button) => button.setAttribute("aria-pressed", String(button === pressed)));
  const comparisons = all("[data-show]");
  comparisons.forEach((button) => button.addEventListener("click", () => {
    press(comparisons, button);
    all(".comparison").forEach((figure) => { figure.hidden = figure.dataset.pair !== button.dataset.show; });
  }));

  // The gallery shows one pair in one mode.
  const shown = (element) => element.dataset.pair === state.pair && element.dataset.mode === state.mode;
  const shotOf = (card) => all(".shot", card).find(shown);
  const showShots = () => all(".shot, .recovery", gallery).forEach((element) => { element.hidden = !shown(element); });

  const sortKeys = {
    share: (card) => Number(card.dataset.rank),
    order: (card) => modelOrder.indexOf(card.dataset.block),
    recovery: (card) => -Number(shotOf(card).dataset.recovery || -Infinity),
    mse: (card) => -Number(shotOf(card).dataset.mse),
  };
  const filters = {
    all: () => true,
    top: (card) => Number(card.dataset.rank) <= 12,
    kept: (card) => card.dataset.kept === "yes",
    double: (card) => card.dataset.stack === "double",
    single: (card) => card.dataset.stack === "single",
  };
  const arrange = () => {
    showShots();
    const key = sortKeys[one("#sort").value], keep = filters[one("#filter").value];
    [...cards.values()].map((card) => [key(card), card]).sort((a, b) => a[0] - b[0]).forEach(([, card]) => {
      card.hidden = !keep(card);
      gallery.append(card);
    });
  };
  one("#pair").addEventListener("change", (event) => { state.pair = event.target.value; arrange(); inspect(inspected); });
  one("#sort").addEventListener("change", arrange);
  one("#filter").addEventListener("change", arrange);
  const modes = all("[data-mode]").filter((element) => element.matches("button"));
  modes.forEach((button) => button.addEventListener("click", () => { state.mode = button.dataset.mode; press(modes, button); arrange(); inspect(inspected); }));
  // From the picture (0) over its changed parts alone (0.7) to the bare map (1); as in page.py.
  // A modal dialog shuts the page's own controls out, so it has its own pair; both pairs agree.
  const follow = (field, now) => (event) => { all(`.${event.target.className}`).forEach((other) => { other[field] = event.target[field]; }); now(event.target); };
  const fade = (slider) => {
    const at = slider.value / 100;
    const veil = Array.from({ length: 17 }, (_, step) => {
      const glow = (step / 16) ** 0.6;
      return (at <= 0.7 ? (at / 0.7) * glow : glow + ((at - 0.7) / 0.3) * (1 - glow)).toFixed(3);
    });
    one("#veil").setAttribute("tableValues", veil.join(" "));
  };
  all(".overlay").forEach((slider) => slider.addEventListener("input", follow("value", fade)));
  const ownScale = ({ checked: own }) => {
    [gallery, one(".detail-grid")].forEach((place) => place.classList.toggle("own", own));
    all("#scale [data-own]").forEach((element) => { element.hidden = !own; });
    all("#scale [data-shared]").forEach((element) => { element.hidden = own; });
  };
  all(".own-box").forEach((box) => box.addEventListener("change", follow("checked", ownScale)));

  // The map: hover and focus tell, Enter and click open.
  let inspected = gallery.firstElementChild.dataset.block;
  const inspect = (name) => {
    const card = cards.get(name), cell = one(`.map-frame [data-block="${name}"]`), panel = one("#inspector");
    inspected = name;
    all(".map-frame [data-block]").forEach((other) => other.classList.toggle("current", other.dataset.block === name));
    one("[data-field=name]", panel).textContent = name;
    one("[data-field=sentence]", panel).textContent = card ? card.dataset.sentence : one("title", cell).textContent;
    one(".pairs", panel).hidden = !card;
    const place = one(".inspector-shot", panel);
    place.hidden = !card;
    if (!card) return;
    one("[data-field=rank]", panel).textContent = `${card.dataset.rank} of ${cards.size}`;
    one("[data-field=only]", panel).textContent = card.dataset.only;
    one("[data-field=without]", panel).textContent = card.dataset.without;
    place.replaceChildren(shotOf(card).cloneNode(true));
  };
  all(".map-frame").forEach((frame) => {
    const cells = all("[data-block]", frame);
    const rove = (cell) => cells.forEach((other) => other.setAttribute("tabindex", other === cell ? "0" : "-1"));
    rove(cells[0]);
    cells.forEach((cell, index) => {
      cell.addEventListener("pointerenter", () => inspect(cell.dataset.block));
      cell.addEventListener("focus", () => { rove(cell); inspect(cell.dataset.block); });
      cell.addEventListener("click", (event) => { event.preventDefault(); inspect(cell.dataset.block); open(cell.dataset.block); });
      cell.addEventListener("keydown", (event) => {
        const box = (item) => one(".ground", item).getBBox();
        const here = box(cell);
        const beside = { ArrowRight: cells[index + 1], ArrowLeft: cells[index - 1], Home: cells[0], End: cells[cells.length - 1] };
        const column = (direction) => cells.filter((other) => direction * (box(other).y - here.y) > 1)
          .sort((a, b) => Math.abs(box(a).y - here.y) - Math.abs(box(b).y - here.y) || Math.abs(box(a).x - here.x) - Math.abs(box(b).x - here.x))[0];
        const next = event.key === "ArrowDown" ? column(1) : event.key === "ArrowUp" ? column(-1) : beside[event.key];
        if (next) { event.preventDefault(); next.focus(); }
      });
    });
  });

  // All pictures of one block, next to both references; another block beside it, if asked for.
  const detail = one("#detail"), beside = one("#beside");
  const figure = (image, words) => {
    const made = document.createElement("figure"), caption = document.createElement("figcaption"), button = document.createElement("button");
    button.type = "button";
    button.className = "zoom";
    button.append(image);
    caption.textContent = words;
    made.append(button, caption);
    return made;
  };
  const shotFigure = (shot, name) => {
    const copy = shot.cloneNode(true), mode = shot.dataset.mode === "only" ? "alone" : "without it";
    copy.hidden = false;
    const recovery = shot.dataset.recovery ? `, recovery ${Number(shot.dataset.recovery).toFixed(2)}` : "";
    return figure(copy, `${name ? name + " " : ""}${mode}${recovery}, ${one(".corner", shot).textContent}`);
  };
  const pairRows = (option, shown) => {
    const block = document.createElement("div"), title = document.createElement("p"), row = document.createElement("div");
    const references = one(`.comparison[data-pair="${option.value}"]`);
    const shots = shown.map((card) => all(`.shot[data-pair="${option.value}"]`, card));
    const none = figure(one(".left", references).cloneNode(), "without LoRA"), full = figure(one(".right", references).cloneNode(), "with LoRA");
    const two = shown.length > 1;
    // Two blocks: references, then mode by mode, so that what is compared stands side by side.
    const images = two
      ? [none, full, ...shots[0].flatMap((shot, index) => shots.map((each, which) => shotFigure(each[index], shown[which].dataset.block)))]
      : [none, ...shots[0].map((shot) => shotFigure(shot)), full];
    block.className = "detail-pair";
    row.className = "detail-row" + (two ? " paired" : "");
    row.style.setProperty("--shown", two ? 2 : images.length);
    title.textContent = option.textContent;
    row.append(...images);
    block.append(title, row);
    return block;
  };
  const fill = (name, other) => {
    const shown = [cards.get(name), ...(other ? [cards.get(other)] : [])];
    one("#detail-name").textContent = shown.map((card) => card.dataset.block).join(" and ");
    one(".detail-numbers").textContent = shown.map((card) => card.dataset.sentence).join(". ");
    one(".detail-grid").replaceChildren(...all("#pair option").map((option) => pairRows(option, shown)));
  };
  let opened = inspected;
  const open = (name) => {
    if (!cards.has(name)) return;
    opened = name;
    beside.value = "";
    all("option", beside).forEach((option) => { option.disabled = option.value === name; });
    fill(name, "");
    detail.showModal();
  };
  beside.addEventListener("change", () => fill(opened, beside.value));
  all(".open").forEach((button) => button.addEventListener("click", () => open(button.closest(".card").dataset.block)));
  all("a[data-block]").filter((link) => !link.closest(".map-frame")).forEach((link) => link.addEventListener("click", (event) => { event.preventDefault(); open(link.dataset.block); }));

  // Any picture as large as the window and the page's copy of it allow; Escape leads back. The
  // picture itself is a file beside the report's folder, one click further.
  const full = one("#full");
  const linked = (file) => {
    const link = document.createElement("a");
    link.href = encodeURI(file.replace(/^data\//, "../"));
    link.target = "_blank";
    link.textContent = file;
    return [" here, in full in ", link];
  };
  const enlarge = (pictures, words, own, file) => {
    one(".full-pictures").replaceChildren(...pictures.map((picture) => picture.cloneNode(true)));
    full.classList.toggle("own", own);
    full.style.setProperty("--shown", pictures.length);
    one("#full-words").replaceChildren(words, ...(file ? linked(file) : []));
    full.showModal();
  };
  document.addEventListener("click", (event) => {
    if (event.target === detail || event.target === full) event.target.close();
    const zoom = event.target.closest(".zoom"), both = event.target.closest(".enlarge");
    if (zoom) {
      const picture = zoom.firstElementChild, image = picture.matches("img") ? picture : one("img", picture);
      const caption = zoom.nextElementSibling && zoom.nextElementSibling.matches("figcaption") ? zoom.nextElementSibling.textContent + ". " : "";
      const size = `${image.naturalWidth} × ${image.naturalHeight} pixels`;
      enlarge([picture], `${caption}${image.alt}. ${size}`, zoom.closest(".own") !== null, picture.dataset.file);
    }
    if (both) {
      const images = all(".compare img", both.closest("figure")).reverse();
      enlarge(images, images.map((image) => image.alt).join("; "), false);
    }
  });

  // The table sorts by its cells' data-value: numbers as numbers, empty cells last.
  const table = one("#ranking-table");
  all("thead th", table).forEach((head, column) => one("button", head).addEventListener("click", () => {
    const ascending = head.getAttribute("aria-sort") === "descending" || (!head.hasAttribute("aria-sort") && column < 2);
    const value = (row) => row.cells[column].dataset.value;
    const compare = (a, b) => {
      if (value(a) === "" || value(b) === "") return (value(a) === "") - (value(b) === "");
      const numeric = Number(value(a)) - Number(value(b));
      return (ascending ? 1 : -1) * (Number.isNaN(numeric) ? value(a).localeCompare(value(b)) : numeric);
    };
    all("thead th", table).forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const body = table.tBodies[0];
    body.append(...[...body.rows].sort(compare));
  }));

  all(".copy").forEach((button) => button.addEventListener("click", async () => {
    const code = one("code", button.parentElement);
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  }));

  arrange();
  ownScale(one("#own-scale"));
  inspect(inspected);
})();
