// The curves: one path a run, the nearest one under the pointer told.
const curves = { lines: [], box: null };

function smoothed(values, weight) {
  // An exponential mean without its bias towards the start (as in Adam, Kingma & Ba 2015, section 3).
  let mean = 0, sum = 0;
  return values.map(value => {
    mean = weight * mean + (1 - weight) * value;
    sum = weight * sum + (1 - weight);
    return mean / sum;
  });
}

function drawCurves() {
  const name = $('curve').value, weight = Number($('smooth').value), node = $('curves');
  const lines = (data.curves.lines[name] || []).filter(([index]) => !view.hidden.has(index)).map(([index, steps, values]) => ({
    index, steps: data.curves.steps[steps], values: weight ? smoothed(values, weight) : values,
  }));
  const all = lines.flatMap(line => line.values);
  const positive = all.length > 0 && all.every(value => value > 0);
  $('log').disabled = !positive;
  curves.lines = [];
  if (!all.length) {
    node.replaceChildren(el('p', { class: 'muted' }, 'no run that is shown has logged this curve'));
    return;
  }
  const height = 360, width = Math.max(260, node.clientWidth);
  const box = { width, left: 54, right: width - 8, top: 22, bottom: height - 38 };
  const extent = values => values.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]);
  const [firstStep, lastStep] = extent(lines.flatMap(line => line.steps));
  const x = axis(firstStep, lastStep, box.left, box.right - 4, false);
  const y = axis(...extent(all), box.bottom, box.top, positive && $('log').checked);
  const picture = frame(node, height, x, y, box, 'optimizer step', name, `${name} of ${lines.length} runs over steps`);
  picture.classList.toggle('few', lines.length <= 24);
  for (const line of lines) {
    const points = line.values.map((value, i) => [x.place(line.steps[i]), y.place(value)]);
    const text = points.map(([a, b]) => `${a.toFixed(1)},${b.toFixed(1)}`);
    const d = 'M' + (text.length > 1 ? text.join('L') : text[0] + 'h3');
    const path = svg('path', { d, 'data-run': data.runs[line.index].id, class: classesOf(line.index, 'curve') });
    curves.lines.push({ ...line, points, path });
  }
  raiseCurves();
  picture.addEventListener('pointermove', event => nearestCurve(event, picture));
  picture.addEventListener('pointerleave', () => { tip(null, null); hover([]); });
  picture.addEventListener('click', () => {
    if (view.hover.size) pick(sameRow(data.runs[[...view.hover][0]]));
  });
}

// Drawn last is drawn on top: faint ones first, then the highlighted, the best of all on top.
function raiseCurves() {
  const level = line => (view.hover.has(line.index) ? 2 : view.picked.has(line.index) ? 1 : 0);
  const order = [...curves.lines].sort((a, b) => level(a) - level(b) || b.index - a.index);
  const picture = $('curves').querySelector('svg');
  for (const line of order) {
    line.path.setAttribute('class', classesOf(line.index, 'curve'));
    picture.append(line.path);
  }
}

function nearestCurve(event, picture) {
  const bounds = picture.getBoundingClientRect();
  const at = [event.clientX - bounds.left, event.clientY - bounds.top];
  let best = null, least = 30 ** 2;
  for (const line of curves.lines) {
    line.points.forEach(([x, y], i) => {
      const distance = ((x - at[0]) * 0.5) ** 2 + (y - at[1]) ** 2;
      if (distance < least) [best, least] = [{ line, i }, distance];
    });
  }
  if (!best) {
    tip(null, null);
    if (view.hover.size) hover([]);
    return;
  }
  const { line, i } = best, run = data.runs[line.index];
  tip(event, `${run.id}\n${told(run)}\nstep ${line.steps[i]}: ${number(line.values[i])}`);
  if (!view.hover.has(line.index) || view.hover.size > 1) hover([line.index]);
}

function startCurves() {
  $('curve').append(...data.curves.names.map(name => el('option', { value: name }, name)));
  const { shown, total, thinned } = data.curves;
  const words = [shown < total ? `The curves of the best ${shown} of ${total} runs are in this page` : `All ${total} runs`];
  if (thinned) words.push(`curves are thinned to at most ${data.curves.points} points`);
  $('curves-note').textContent = words.join('; ') + '.';
  for (const id of ['curve', 'log', 'smooth']) $(id).addEventListener('input', drawCurves);
  const values = (data.curves.lines[data.curves.names[0]] || []).flatMap(line => line[2]);
  const [low, high] = values.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]);
  $('log').checked = low > 0 && high > 20 * low;
}
