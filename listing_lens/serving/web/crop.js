// The part of the photo that is searched with: a box that is drawn, or sides that are moved.

const frame = document.getElementById("frame");
const box = document.getElementById("box");
const sides = Object.fromEntries(
  ["left", "top", "right", "bottom"].map((name) => [name, document.querySelector(`#crop input[name=${name}]`)]),
);
const LEAST = 0.05;
const WHOLE = [0, 0, 1, 1];

export function part() {
  return [sides.left, sides.top, sides.right, sides.bottom].map((side) => Number(side.value));
}

export function isWhole() {
  return part().every((value, n) => value === WHOLE[n]);
}

export function set([left, top, right, bottom] = WHOLE) {
  Object.assign(sides.left, { value: left });
  Object.assign(sides.top, { value: top });
  Object.assign(sides.right, { value: right });
  Object.assign(sides.bottom, { value: bottom });
  draw();
}

function draw() {
  const [left, top, right, bottom] = part();
  box.hidden = isWhole();
  Object.assign(box.style, {
    left: `${100 * left}%`, top: `${100 * top}%`, width: `${100 * (right - left)}%`, height: `${100 * (bottom - top)}%`,
  });
}

function keepApart(moved, other, sign) {
  if (sign * (sides[other].value - sides[moved].value) < LEAST) sides[moved].value = sides[other].value - sign * LEAST;
  draw();
}

sides.left.addEventListener("input", () => keepApart("left", "right", 1));
sides.top.addEventListener("input", () => keepApart("top", "bottom", 1));
sides.right.addEventListener("input", () => keepApart("right", "left", -1));
sides.bottom.addEventListener("input", () => keepApart("bottom", "top", -1));

const share = (value) => Math.round(100 * Math.min(1, Math.max(0, value))) / 100;

// Only while the part is being chosen, so that a phone's page still scrolls by its photo.
const choosing = () => document.getElementById("crop").open;

frame.addEventListener("pointerdown", (down) => {
  if (!choosing()) return;
  down.preventDefault();
  frame.setPointerCapture(down.pointerId);
  const area = frame.getBoundingClientRect();
  const at = (event) => [share((event.clientX - area.left) / area.width), share((event.clientY - area.top) / area.height)];
  const [fromX, fromY] = at(down);
  const move = (event) => {
    const [x, y] = at(event);
    if (Math.abs(x - fromX) < LEAST || Math.abs(y - fromY) < LEAST) return;
    set([Math.min(x, fromX), Math.min(y, fromY), Math.max(x, fromX), Math.max(y, fromY)]);
  };
  frame.addEventListener("pointermove", move);
  const end = () => frame.removeEventListener("pointermove", move);
  frame.addEventListener("pointerup", end, { once: true });
  frame.addEventListener("pointercancel", end, { once: true });
});

document.getElementById("crop").addEventListener("toggle", () => frame.classList.toggle("choosing", choosing()));
