/** Tables and folded parts. Every text is a text node. */

import { h, sparkline } from '../views/dom';
import type { Part, Table } from './types';

export function tableOf(table: Table): HTMLElement {
  const cell = (tag: 'td' | 'th', text: string, at: number, row?: number) => {
    const bar = row === undefined || at !== table.head.length - 1 ? undefined : table.bars?.[row];
    const shown = bar === undefined ? text : h('span', { class: 'bar', style: `--share: ${bar}` });
    const scope = tag === 'th' ? 'col' : null;
    return h(tag, { dir: 'auto', class: table.right.includes(at) ? 'right' : '', scope }, shown);
  };
  const node = h('table', {});
  if (table.head.some(Boolean)) {
    const more = table.courses === undefined ? null : h('th', {}, h('span', { class: 'unseen' }, 'its course'));
    node.append(h('thead', {}, h('tr', {}, ...table.head.map((text, at) => cell('th', text, at)), more)));
  }
  const rows = table.rows.map((row, number) => {
    const course = table.courses?.[number];
    const drawn = course === undefined ? null : h('td', {}, sparkline(course, 96, 22, [0, 1]));
    return h('tr', {}, ...row.map((text, at) => cell('td', text, at, number)), drawn);
  });
  node.append(h('tbody', {}, ...rows));
  return h('div', { class: 'table' }, node, table.more ? h('div', { class: 'muted' }, table.more) : null);
}

export function linesOf(lines: readonly string[]): HTMLElement[] {
  return lines.map(line => h('div', { class: line.startsWith('⚠') ? 'warning' : '' }, line));
}

/** A part that folds; what was unfolded once stays so, by `key`. */
export function folded(part: Part, open: boolean): HTMLDetailsElement {
  return h(
    'details',
    { open },
    h('summary', {}, part.title),
    ...linesOf(part.lines ?? []),
    ...part.tables.map(tableOf)
  );
}
