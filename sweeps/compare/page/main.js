// The head of the page, and what makes its parts move together.
function card(head, big, small) {
  const size = big.length > 24 ? 'long' : '';
  $('cards').append(el('div', { class: 'card' }, el('span', {}, head), el('b', { class: size }, big), el('span', {}, small)));
}

function startHead() {
  const ranked = data.runs.filter(run => run.setting !== null), best = data.settings[0];
  $('subtitle').textContent = `${ranked.length} COMPLETED runs of ${data.settings.length} settings, ranked by `
    + `${data.metric}, ${data.larger ? 'largest' : 'smallest'} first`;
  if (best) {
    const spread = best.spread === null ? '' : ` ± ${Number(best.spread.toPrecision(2))}`;
    card('best', number(best.mean) + spread, `${data.metric}, ${best.n > 1 ? `mean and spread (sd) of ${best.n} runs` : 'one run'}`);
    const run = data.runs.find(one => one.setting === 0);
    const words = data.columns.map((c, i) => (c.seed || run.values[i] === '–' ? '' : `${c.name}=${number(run.values[i])}`));
    card('best setting', words.filter(Boolean).join(' ') || run.id, `best run ${run.id}`);
  }
  const first = data.parameters.find(one => one.share !== null);
  if (first) card('mattered most', first.name, `explains ${percent(first.share)} of the variance`);
  const states = new Map();
  data.runs.forEach(run => states.set(run.state, (states.get(run.state) || 0) + 1));
  card('runs', String(data.runs.length), [...states].map(([state, count]) => `${count} ${state}`).join(', '));
  $('notes').hidden = !data.notes.length;
  $('notes').firstElementChild.append(...data.notes.map(note => el('li', {}, note)));
}

function startTheme() {
  const dark = matchMedia('(prefers-color-scheme: dark)');
  const set = theme => { document.documentElement.dataset.theme = theme; };
  set(dark.matches ? 'dark' : 'light');
  dark.addEventListener('change', () => set(dark.matches ? 'dark' : 'light'));
  $('theme').addEventListener('click', () => set(document.documentElement.dataset.theme === 'dark' ? 'light' : 'dark'));
}

function startAll() {
  startTheme();
  startHead();
  data.settings.slice(0, BEST).forEach((_, setting) => data.runs.forEach(run => {
    if (run.setting === setting) view.picked.set(run.index, setting);
  }));
  startCurves();
  startParameters();
  buildTable();
  drawScatter();
  drawCurves();
  view.listeners.push(() => { if (curves.lines.length) raiseCurves(); }, paintDots, paintTable);
  $('filter').addEventListener('input', () => { applyFilter(); drawCurves(); drawScatter(); });
  $('each').addEventListener('input', () => { buildTable(); drawCurves(); drawScatter(); });
  $('clear').addEventListener('click', () => { view.picked.clear(); changed('picked'); });
  // A scroll bar that comes or goes is enough to change it.
  for (const [id, draw] of [['curves', drawCurves], ['scatter', drawScatter]]) {
    new ResizeObserver(() => {
      const picture = $(id).querySelector('svg');
      if (picture && picture.viewBox.baseVal.width !== $(id).clientWidth) draw();
    }).observe($(id));
  }
}

startAll();
