"use strict";
(function () {
  const holder = document.getElementById("plane-data");
  if (!holder) return;
  const plane = JSON.parse(holder.textContent);
  const map = document.getElementById("plane-map");
  const wall = map.querySelector("img");
  const mark = document.getElementById("plane-mark");
  const canvas = document.getElementById("plane-image");
  const where = document.getElementById("plane-where");
  const middle = { column: (plane.columns - 1) / 2, row: (plane.rows - 1) / 2 };
  let column = middle.column;
  let row = middle.row; // from below

  function told(value) {
    return value.toFixed(2).replace("-", "\u2212");
  }

  function show() {
    const fromTop = plane.rows - 1 - row;
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(
      wall, column * (canvas.width + plane.gap), fromTop * (canvas.height + plane.gap),
      canvas.width, canvas.height, 0, 0, canvas.width, canvas.height);
    mark.hidden = false;
    mark.style.left = (100 * column) / plane.columns + "%";
    mark.style.top = (100 * fromTop) / plane.rows + "%";
    mark.style.width = 100 / plane.columns + "%";
    mark.style.height = 100 / plane.rows + "%";
    const said = [plane.names[0] + " = " + told(plane.across[column])];
    const shares = [(100 * plane.uAcross[column]).toFixed(0) + " %"];
    if (plane.rows > 1) {
      said.push(plane.names[1] + " = " + told(plane.up[row]));
      shares.push((100 * plane.uUp[row]).toFixed(0) + " %");
    }
    where.textContent = said.join(", ") + "\nprior probability below: " + shares.join(", ");
    canvas.setAttribute("aria-label", "The image at " + said.join(", "));
  }

  function go(newColumn, newRow) {
    newColumn = Math.min(plane.columns - 1, Math.max(0, newColumn));
    newRow = Math.min(plane.rows - 1, Math.max(0, newRow));
    if (newColumn === column && newRow === row) return;
    column = newColumn;
    row = newRow;
    show();
  }

  function point(event) {
    const box = wall.getBoundingClientRect();
    go(
      Math.floor(((event.clientX - box.left) / box.width) * plane.columns),
      Math.floor(((box.bottom - event.clientY) / box.height) * plane.rows));
  }

  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
  map.addEventListener("pointermove", point);
  map.addEventListener("pointerdown", point);
  map.addEventListener("keydown", function (event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key in steps) {
      go(column + steps[event.key][0], row + steps[event.key][1]);
    } else if (event.key === "Home") {
      go(middle.column, middle.row);
    } else {
      return;
    }
    event.preventDefault(); // arrow keys would scroll
  });
  if (wall.complete) show();
  else wall.addEventListener("load", show);
})();
