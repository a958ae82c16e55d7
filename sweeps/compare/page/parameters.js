// What mattered, as bars; and one setting against the metric, a dot for each run.
function startParameters() {
  $('mattered-metric').textContent = data.metric;
  const node = $('mattered');
  if (!data.parameters.length) {
    node.append(el('p', { class: 'muted' }, 'The runs that have a metric differ in no setting.'));
  }
  for (const one of data.parameters) {
    const fill = el('div', { class: 'fill' });
    fill.style.width = `${100 * (one.share || 0)}%`;
    const button = el('button', { type: 'button', class: 'share', 'data-key': one.key, title: one.key },
      el('div', { class: 'line' }, el('span', { class: 'name' }, one.name), el('b', {}, percent(one.share))),
      el('div', { class: 'track' }, fill), el('div', { class: 'why' }, one.told));
    button.addEventListener('click', () => { $('parameter').value = one.key; drawScatter(); });
    node.append(button);
  }
  const ordered = [...data.parameters.map(p => p.key), ...data.columns.map(c => c.key)];
  for (const key of new Set(ordered)) {
    $('parameter').append(el('option', { value: key }, data.columns.find(c => c.key === key).name));
  }
  if (data.columns.length > 1) $('parameter').append(el('option', { value: ALL }, 'all of them'));
  $('parameter').addEventListener('input', drawScatter);
}

function drawScatter() {
  const key = $('parameter').value, node = $('scatter');
  document.querySelectorAll('.share').forEach(b => b.classList.toggle('chosen', b.dataset.key === key));
  if (key === ALL) { drawParallel(node); return; }
  const at = data.columns.findIndex(column => column.key === key);
  const dots = data.runs.filter(run => typeof run.value === 'number' && at >= 0 && !view.hidden.has(run.index)
    && !run.partial && run.values[at] !== '–' && run.values[at] !== undefined);
  if (!dots.length) {
    node.replaceChildren(el('p', { class: 'muted' }, 'no run that is shown has this setting and a metric'));
    $('scatter-note').textContent = '';
    return;
  }
  const height = 300, width = Math.max(240, node.clientWidth);
  const box = { width, left: 54, right: width - 12, top: 24, bottom: height - 38 };
  const values = dots.map(run => run.values[at]), metric = dots.map(run => run.value);
  const numeric = values.every(v => typeof v === 'number');
  const [low, high] = [Math.min(...metric), Math.max(...metric)];
  const y = axis(low, high, box.bottom - 6, box.top, low > 0 && high > 20 * low);
  const x = numeric ? numericAxis(values, box.left + 26, box.right - 26) : wordAxis(values, box.left, box.right);
  const name = data.columns[at].name;
  const picture = frame(node, height, x, y, box, name + (x.log ? ' (log scale)' : ''), data.metric, `${data.metric} by ${name}`);
  for (const run of [...dots].reverse()) {
    const dot = svg('circle', { cx: x.place(run.values[at]), cy: y.place(run.value), r: dots.length > 200 ? 3 : 4.5 });
    dot.dataset.index = run.index;
    dot.setAttribute('class', classesOf(run.index, 'dot'));
    dot.addEventListener('pointermove', event => {
      tip(event, `${run.id}\n${told(run)}\n${data.metric} ${number(run.value)}`);
      if (!view.hover.has(run.index)) hover([run.index]);
    });
    dot.addEventListener('pointerleave', () => { tip(null, null); hover([]); });
    dot.addEventListener('click', () => pick(sameRow(run)));
    picture.append(dot);
  }
  $('scatter-note').textContent = means(dots, at, x, y, picture);
}

// A short line at the mean of each value, where a value has several runs.
function means(dots, at, x, y, picture) {
  const groups = Map.groupBy ? Map.groupBy(dots, run => run.values[at]) : grouped(dots, at);
  if (groups.size < 2 || groups.size > 12 || dots.length < groups.size * 2) return '';
  for (const [value, runs] of groups) {
    const mean = runs.reduce((sum, run) => sum + run.value, 0) / runs.length, centre = x.place(value);
    picture.append(svg('line', { class: 'mean', x1: centre - 12, x2: centre + 12, y1: y.place(mean), y2: y.place(mean) }));
  }
  return 'The short lines are the means of each value.';
}

function grouped(dots, at) {
  const groups = new Map();
  for (const run of dots) groups.set(run.values[at], [...(groups.get(run.values[at]) || []), run]);
  return groups;
}

function numericAxis(values, from, to) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const log = low > 0 && high >= 8 * low;
  const made = axis(low, high, from, to, log);
  const distinct = [...new Set(values)].sort((a, b) => a - b);
  if (distinct.length <= 8) made.ticks = distinct;
  return { ...made, log, text: number };
}

function wordAxis(values, from, to) {
  const words = [...new Set(values.map(String))].sort();
  const step = (to - from) / words.length;
  const most = Math.max(4, Math.floor(Math.abs(step) / 7));
  return {
    place: value => from + step * (words.indexOf(String(value)) + 0.5), ticks: words, log: false,
    text: word => (word.length > most ? word.slice(0, most - 1) + '…' : word),
  };
}

function paintDots() {
  for (const kind of ['dot', 'strand']) {
    document.querySelectorAll('.' + kind).forEach(mark =>
      mark.setAttribute('class', classesOf(Number(mark.dataset.index), kind)));
  }
}
