/** Makes elements. Everything that is shown goes in as a text node: nothing is ever read as markup. */

import type { LabIcon } from '@jupyterlab/ui-components';

type Child = Node | string | number | null | undefined | false;
type Attributes = Record<string, string | number | boolean | ((event: Event) => void) | null | undefined>;

/** Make an element. `onclick` and the like are listeners, `true` an empty attribute, null and false none. */
export function h<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Attributes = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === 'function') {
      node.addEventListener(name.slice(2), value);
    } else if (value !== null && value !== undefined && value !== false) {
      node.setAttribute(name, value === true ? '' : String(value));
    }
  }
  append(node, children);
  return node;
}

/** Replace all that is inside `node`. */
export function fill(node: Element, ...children: Child[]): void {
  node.replaceChildren();
  append(node, children);
}

function append(node: Element, children: Child[]): void {
  for (const child of children) {
    if (child !== null && child !== undefined && child !== false) {
      node.append(typeof child === 'number' ? String(child) : child);
    }
  }
}

/** A part that folds. */
export function section(title: string, content: Node, open: boolean): HTMLDetailsElement {
  const node = h('details', { class: 'gptx-Section' }, h('summary', {}, title), content);
  node.open = open;
  return node;
}

/** A button with an icon and a name that is heard, and seen as a tooltip. */
export function iconButton(icon: LabIcon, name: string, action: () => void, className = ''): HTMLButtonElement {
  const button = h('button', {
    type: 'button',
    class: `gptx-IconButton ${className}`.trim(),
    title: name,
    'aria-label': name,
    onclick: event => {
      event.stopPropagation();
      action();
    }
  });
  icon.element({ container: button, tag: 'span' });
  return button;
}

const NAMESPACE = 'http://www.w3.org/2000/svg';

/** A small curve without axes, from the lowest to the highest value or over `range`; null where there is none to draw. */
export function sparkline(
  values: readonly number[],
  width = 96,
  height = 22,
  range?: [number, number]
): SVGSVGElement | null {
  if (values.length < 2) {
    return null;
  }
  const [low, high] = range ?? [Math.min(...values), Math.max(...values)];
  const points = values.map((value, at) => {
    const x = 1 + (at / (values.length - 1)) * (width - 2);
    const y = 2 + (1 - (value - low) / (high - low || 1)) * (height - 4);
    return `${x.toFixed(1)},${y.toFixed(1)}`;
  });
  const svg = document.createElementNS(NAMESPACE, 'svg');
  svg.setAttribute('class', 'gptx-Sparkline');
  svg.setAttribute('viewBox', `0 0 ${width} ${height}`);
  svg.setAttribute('width', String(width));
  svg.setAttribute('height', String(height));
  svg.setAttribute('role', 'img');
  svg.setAttribute(
    'aria-label',
    `${range ? '' : 'loss '}from ${values[0] ?? ''} to ${values[values.length - 1] ?? ''}`
  );
  const line = document.createElementNS(NAMESPACE, 'polyline');
  line.setAttribute('points', points.join(' '));
  svg.append(line);
  return svg;
}
