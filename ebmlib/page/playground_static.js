// The page without a kernel: a model that keeps its traits in an object and calls its listeners.
function localModel(state) {
  const listeners = {};
  return {
    get: (name) => state[name],
    set(name, value) {
      if (state[name] === value) return;
      state[name] = value;
      for (const listener of [...(listeners["change:" + name] || [])]) listener();
    },
    on: (event, listener) => (listeners[event] = listeners[event] || []).push(listener),
    off: (event, listener) => (listeners[event] = (listeners[event] || []).filter((l) => l !== listener)),
    save_changes() {},
  };
}

function hydrate() {
  const places = document.querySelectorAll("." + STATIC_CLASS + ":not([data-live])");
  if (!places.length) return;
  document.head.append(make("style", {}, CSS));
  for (const place of places) {
    const state = JSON.parse(place.querySelector('script[type="application/json"]').textContent);
    place.dataset.live = "";
    place.replaceChildren();
    render({ model: localModel(state), el: place });
  }
}

if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", hydrate);
else hydrate();
