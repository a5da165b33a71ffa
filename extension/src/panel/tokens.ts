/** How the model sees an example: its tokens one by one, those that it does not have to predict greyed. */

import { h } from '../views/dom';

export interface Example {
  pieces: [string, boolean][];
  label: string | null;
  tokens: number;
}

export function example(each: Example): HTMLElement {
  const tokens = each.pieces.map(([text, predicted]) =>
    h('span', { class: predicted || each.label !== null ? 'token' : 'token masked' }, text.replaceAll('\n', '↵\n'))
  );
  const label = each.label === null ? null : h('span', { class: 'label' }, ' → ', h('b', { dir: 'auto' }, each.label));
  return h(
    'div',
    { class: 'example' },
    h('div', { class: 'tokens', dir: 'auto' }, ...tokens, label),
    h('div', { class: 'muted' }, `${each.tokens} token${each.tokens === 1 ? '' : 's'}`)
  );
}

/** Bars of how many rows are how long: [shortest, longest, rows] of tokens. */
export function lengths(bins: readonly [number, number, number][]): HTMLElement {
  const most = Math.max(1, ...bins.map(([, , count]) => count));
  const bars = bins.map(([low, high, count]) =>
    h('i', {
      style: `--share: ${count / most}`,
      title: `${low === high ? low : `${low} to ${high}`} tokens: ${count} rows`
    })
  );
  const [first] = bins;
  const last = bins[bins.length - 1];
  const told = bins.map(([low, high, count]) => `${low} to ${high}: ${count}`).join(', ');
  return h(
    'figure',
    { class: 'lengths' },
    h('div', { class: 'bins', role: 'img', 'aria-label': `rows by tokens: ${told}` }, ...bars),
    h('figcaption', {}, h('span', {}, first?.[0] ?? ''), h('span', {}, 'tokens a row'), h('span', {}, last?.[1] ?? ''))
  );
}
