// The part of the photo that is searched with: a box that is drawn, or sides that are moved.

const details = document.getElementById("crop");
const frame = document.getElementById("frame");
const box = document.getElementById("box");
const sides = Object.fromEntries(
  ["left", "top", "right", "bottom"].map((name) => [name, details.querySelector(`input[name=${name}]`)]),
);
const LEAST = 0.05;
const WHOLE = [0, 0, 1, 1];

// Left, top, right and bottom as shares of the photo; null for all of it.
export function part() {
  const values = Object.values(sides).map((side) => Number(side.value));
  return values.every((value, n) => value === WHOLE[n]) ? null : values;
}

export function set(part) {
  for (const [n, side] of Object.values(sides).entries()) side.value = (part ?? WHOLE)[n];
  if (part) details.open = true;
  draw();
}

function draw() {
  const [left, top, right, bottom] = part() ?? WHOLE;
  box.hidden = part() === null;
  // Through the style's own interface, which the page's policy lets pass.
  Object.assign(box.style, {
    left: `${100 * left}%`, top: `${100 * top}%`, width: `${100 * (right - left)}%`, height: `${100 * (bottom - top)}%`,
  });
  for (const side of Object.values(sides)) side.setAttribute("aria-valuetext", `${Math.round(100 * side.value)} %`);
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

frame.addEventListener("pointerdown", (down) => {
  // Only while the part is being chosen, so that a phone's page still scrolls by its photo.
  if (!details.open || !down.isPrimary || down.button !== 0) return;
  down.preventDefault();
  frame.setPointerCapture(down.pointerId);
  const area = frame.getBoundingClientRect();
  const at = (event) => [share((event.clientX - area.left) / area.width), share((event.clientY - area.top) / area.height)];
  const [fromX, fromY] = at(down);
  const drawTo = (event) => {
    const [x, y] = at(event);
    if (Math.abs(x - fromX) < LEAST || Math.abs(y - fromY) < LEAST) return;
    set([Math.min(x, fromX), Math.min(y, fromY), Math.max(x, fromX), Math.max(y, fromY)]);
  };
  const drawing = new AbortController();
  frame.addEventListener("pointermove", drawTo, drawing);
  for (const end of ["pointerup", "pointercancel"]) frame.addEventListener(end, () => drawing.abort(), drawing);
});

details.addEventListener("toggle", () => frame.classList.toggle("choosing", details.open));
