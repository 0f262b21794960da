// The page says everything without this: it only filters, changes the theme and opens what is folded before printing.
// Nothing is made of text: elements are shown, hidden and counted.
(() => {
  "use strict";
  const byId = (id) => document.getElementById(id);

  const theme = byId("theme");
  const themes = ["as the system", "light", "dark"];
  let chosen = 0;
  const showTheme = () => {
    theme.textContent = `Theme: ${themes[chosen]}`;
    if (chosen === 0) delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = themes[chosen];
  };
  theme.hidden = false;
  theme.addEventListener("click", () => {
    // The first press changes what is seen, whatever the system's theme is.
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const order = dark ? [0, 1, 2] : [0, 2, 1];
    chosen = order[(order.indexOf(chosen) + 1) % 3];
    showTheme();
  });

  let opened = [];
  const unfold = () => {
    // The numbers of a plot only repeat it: on paper they stand where a reader has opened them.
    opened = [...document.querySelectorAll("details:not([open]):not(.numbers)")];
    for (const details of opened) details.open = true;
  };
  const fold = () => {
    for (const details of opened) details.open = false;
    opened = [];
  };
  addEventListener("beforeprint", unfold);
  addEventListener("afterprint", fold);

  // A viewer may show the page in a frame of no origin, where a browser refuses to follow even a link within the page.
  addEventListener("click", (event) => {
    const link = event.target instanceof Element && event.target.closest("a[href^='#']");
    const aim = link && byId(link.hash.slice(1));
    if (!aim || self.origin !== "null" || location.protocol === "file:") return;
    event.preventDefault();
    aim.tabIndex = -1;
    aim.focus({ preventScroll: true });
    aim.scrollIntoView();
  });

  const form = byId("flip-filters");
  if (!form) return;
  const search = byId("flip-search");
  const count = byId("flip-count");
  const choice = (name) => byId(`flip-${name}`)?.value ?? "";
  const items = [...byId("flip-list").children].map((item) => ({
    item,
    text: item.textContent.toLowerCase(),
    changes: [...item.querySelectorAll("[data-variant]")],
  }));
  const format = new Intl.NumberFormat("en");

  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const [variant, name, slice, way] = ["variant", "eval", "slice", "way"].map(choice);
    let shown = 0;
    for (const { item, text, changes } of items) {
      let some = false;
      for (const change of changes) {
        const fits = (!variant || change.dataset.variant === variant) && (!way || change.dataset.way === way);
        change.hidden = !fits;
        some ||= fits;
      }
      const fits =
        some &&
        (!name || item.dataset.eval === name) &&
        (!slice || item.dataset.slice === slice) &&
        words.every((word) => text.includes(word));
      item.hidden = !fits;
      shown += fits;
    }
    const all = format.format(items.length);
    count.textContent = shown === items.length ? `${all} items` : `${format.format(shown)} of ${all} items`;
  };

  form.hidden = false;
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  addEventListener("keydown", (event) => {
    const writes = event.target instanceof Element && event.target.closest("input, select, textarea");
    if (event.key === "/" && !writes && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      search.focus();
      search.select();
    } else if (event.key === "Escape" && event.target === search && search.value) {
      event.preventDefault();
      search.value = "";
      filter();
    }
  });
  filter();
})();
