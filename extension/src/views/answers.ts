/** What a model answers, for the dashboard and the notebook's panel: labels with their shares, or what it wrote. */

import { h } from './dom';

/** A bar a label, in the order given: the likeliest first. */
export function labelBars(shares: readonly (readonly [string, number])[]): HTMLElement[] {
  return shares.map(([label, share]) => {
    const filled = h('div', { class: 'gptx-Bar-filled' });
    filled.style.width = `${Math.round(100 * share)}%`;
    return h(
      'div',
      { class: 'gptx-Ask-label' },
      h('span', { dir: 'auto', title: label }, label),
      h('div', { class: 'gptx-Bar' }, filled),
      h('span', {}, share.toFixed(3))
    );
  });
}

/** What was written, with its line breaks. */
export function written(text = ''): HTMLElement {
  return h('div', { class: 'gptx-Ask-written', dir: 'auto' }, text);
}
