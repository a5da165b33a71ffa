import { expect, test } from 'vitest';

import panel, { type Model } from '../src/panel';

test('the panel shows the line of its model as text, and follows it', () => {
  let line = '<b>demo</b> step 1/60';
  const listeners = new Set<() => void>();
  const model: Model = {
    get: name => (name === 'line' ? line : undefined),
    on: (_event, callback) => listeners.add(callback),
    off: (_event, callback) => listeners.delete(callback)
  };
  const el = document.createElement('div');
  const undo = panel().render({ model, el });
  expect(el.textContent).toBe('<b>demo</b> step 1/60');
  line = 'demo step 2/60';
  listeners.forEach(callback => callback());
  expect(el.textContent).toBe('demo step 2/60');
  undo();
  expect(listeners.size).toBe(0);
  expect(el.childElementCount).toBe(0);
});
