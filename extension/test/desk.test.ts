import { afterEach, expect, test, vi } from 'vitest';

import type { Setting } from '../src/model';
import panel from '../src/panel';
import { Channel, GONE, Refused } from '../src/panel/channel';
import { example, lengths } from '../src/panel/tokens';
import { FakeModel } from './fake';
import told from './settings.json';

const SETTINGS = told as unknown as Record<string, { setting: Setting }[]>;
const HACK = '<img src=x onerror="window.hacked = 1">';
const kinds = Object.fromEntries(Object.entries(SETTINGS).map(([kind, all]) => [kind, all.map(each => each.setting)]));
const opened = {
  kinds,
  tables: [{ name: 'df', kind: 'DataFrame', rows: 1200, columns: ['body', 'stars'] }],
  cells: ['%%gpt_finetune a\ndata: df'],
  opened: { kind: 'finetune', name: 'reviews', recipe: { data: 'df', epochs: 3 } }
};
const runs = [
  { id: 'reviews/1', name: 'reviews', version: 1, kind: 'finetune', doing: HACK, state: 'finished', active: false },
  { id: 'reviews/2', name: 'reviews', version: 2, kind: 'finetune', doing: 'training', state: 'running', active: true }
];

interface Asked {
  kind: string;
  id: string;
  what: string;
  [more: string]: unknown;
}

/** A panel without a kernel: `answer` gives what the latest question of that kind is answered with. */
class Page {
  readonly model = new FakeModel({
    view: 'panel',
    head: { name: '', state: 'starting', active: true, can: [] },
    about: [],
    history: undefined,
    number: 0
  });
  readonly el = document.createElement('div');
  readonly undo: (() => void) | undefined;

  /** `load` is the module that anywidget calls. */
  constructor(load = panel) {
    document.body.append(this.el);
    const widget = load();
    widget.initialize({ model: this.model });
    this.undo = widget.render({ model: this.model, el: this.el });
  }

  asked(what: string): Asked | undefined {
    const all = this.model.sent.filter((each): each is Asked => (each as Asked).what === what);
    return all[all.length - 1];
  }

  async tell(kind: 'answer' | 'part', what: string, more: Record<string, unknown>): Promise<void> {
    await vi.waitFor(() => expect(this.asked(what)).toBeDefined());
    this.model.tell('msg:custom', { kind, id: this.asked(what)?.id, ...more }, []);
    await new Promise(later => setTimeout(later));
  }

  tab(name: string): void {
    this.button(name).click();
  }

  button(label: string): HTMLButtonElement {
    const found = [...this.el.querySelectorAll('button')].find(each => each.textContent === label);
    if (!found) {
      throw new Error(`no button ${label}`);
    }
    return found;
  }

  field(name: string): HTMLElement | null {
    return this.el.querySelector(`[data-setting="${name}"]`);
  }
}

afterEach(() => {
  document.body.replaceChildren();
});

async function form(): Promise<Page> {
  const page = new Page();
  await page.tell('answer', 'open', { value: opened });
  return page;
}

test('a channel hands parts and answers to their question, and errors with their field', async () => {
  const model = new FakeModel({});
  const channel = new Channel(model, () => undefined);
  const parts: unknown[] = [];
  const { answer } = channel.ask<number>('put', { text: 'a' }, (part: unknown) => parts.push(part));
  const { id } = model.sent[0] as Asked;
  model.tell('msg:custom', { kind: 'part', id, value: 'x' }, []);
  model.tell('msg:custom', { kind: 'part', id: 'another', value: 'y' }, []);
  model.tell('msg:custom', { kind: 'answer', id, value: 7 }, []);
  expect([await answer, parts]).toEqual([7, ['x']]);
  const refused = channel.ask('start').answer;
  model.tell('msg:custom', { kind: 'answer', id: (model.sent[1] as Asked).id, error: 'no', field: 'epochs' }, []);
  await expect(refused).rejects.toEqual(new Refused('no', 'epochs'));
  const open = channel.ask('put');
  open.withdraw();
  expect(model.sent[3]).toEqual({ kind: 'withdraw', id: (model.sent[2] as Asked).id });
});

test('the form opens with a recipe, and says what is wrong beside its control', async () => {
  const page = await form();
  expect(page.el.querySelector<HTMLInputElement>('[data-setting="name"] input')?.value).toBe('reviews');
  expect(page.field('data')?.querySelector('input')?.value).toBe('df');
  page.button('Start').click();
  expect(page.asked('start')).toMatchObject({
    run_kind: 'finetune',
    name: 'reviews',
    recipe: { data: 'df', epochs: 3 }
  });
  expect(page.button('Start').disabled).toBe(true);
  await page.tell('answer', 'start', { error: `epochs: ${HACK} does not fit`, field: 'epochs' });
  expect(page.field('epochs')?.querySelector('.gptx-Form-error')?.textContent).toContain(HACK);
  page.button('Start').click();
  expect(page.field('epochs')?.classList.contains('gptx-mod-wrong')).toBe(false);
  await page.tell('answer', 'start', { value: { id: 'reviews/1', note: '' } });
  expect(page.button('Watch').getAttribute('aria-selected')).toBe('true');
  expect(page.el.querySelector('img')).toBeNull();
  page.undo?.();
  expect(page.el.childElementCount).toBe(0);
});

test('what is typed is told to the kernel a moment later, once', async () => {
  const page = await form();
  const name = page.el.querySelector<HTMLInputElement>('[data-setting="name"] input');
  const drafts = () => page.model.sent.filter(each => (each as Asked).kind === 'draft');
  for (const typed of ['h', 'ha', 'half']) {
    if (name) {
      name.value = typed;
      name.dispatchEvent(new Event('input', { bubbles: true }));
    }
  }
  await vi.waitFor(() => expect(drafts()).toHaveLength(1));
  expect(drafts()[0]).toMatchObject({ draft: { kind: 'finetune', name: 'half', recipe: { data: 'df', epochs: 3 } } });
});

test('what the model sees is shown in parts, and another column is chosen', async () => {
  const page = await form();
  page.button('Look at data and cost').click();
  const report = {
    why: 'text is column body',
    text: 'body',
    label: 'stars',
    rows: 3,
    used: 2,
    train: 2,
    validation: 0
  };
  const table = { columns: ['body', 'stars', 'title'], rows: [[HACK, '5', 't']], count: 3, error: null };
  await page.tell('part', 'rehearse', {
    value: {
      ...table,
      report: { ...report, labels: { [HACK]: 2 }, warnings: ['one is empty'], remarks: ['both ways'] }
    }
  });
  expect(page.el.querySelector('.preview')?.textContent).toContain('both ways⚠ one is empty');
  await page.tell('answer', 'rehearse', {
    value: {
      plan: { memory: { choice: '1.2 GB', reason: 'at the peak' }, notes: ['little'], remarks: [`within ${HACK}`] },
      lengths: [[1, 4, 2]],
      examples: [{ pieces: [[HACK, false]], label: '5', tokens: 1 }]
    }
  });
  expect(page.el.querySelector('.preview')?.textContent).toContain('memory1.2 GBat the peak');
  expect(page.el.querySelector('.preview')?.textContent).toContain(`within ${HACK}⚠ little`);
  expect(page.el.querySelector('img')).toBeNull();
  const list = page.el.querySelector<HTMLSelectElement>('[aria-label="Column of text"]');
  if (list) {
    list.value = 'title';
    list.dispatchEvent(new Event('change'));
  }
  expect(page.asked('rehearse')).toMatchObject({ recipe: { data: 'df', text: 'title' } });
});

/** Type into a control as a person does. */
function type(page: Page, setting: string, text: string): void {
  const control = page.field(setting)?.querySelector('input');
  if (control) {
    control.value = text;
    control.dispatchEvent(new Event('input', { bubbles: true }));
  }
}

test('a panel that has outlived its kernel says so, and what to do', async () => {
  const page = await form();
  page.model.send = () => {
    throw new Error('Cannot send');
  };
  type(page, 'epochs', '7');
  page.button('Copy as cell').click();
  await vi.waitFor(() => expect(page.el.querySelector('.gptx-Form-message')?.textContent).toBe(GONE));
  page.tab('Watch');
  page.undo?.();
  expect(page.el.childElementCount).toBe(0);
});

test('what was typed for one kind of run is there again after a look at the other', async () => {
  const page = await form();
  type(page, 'epochs', '40');
  page.button('Pretrain').click();
  type(page, 'data', 'book.txt');
  page.button('Fine-tune').click();
  expect(page.field('epochs')?.querySelector('input')?.value).toBe('40');
  expect(page.field('data')?.querySelector('input')?.value).toBe('df');
  page.button('Pretrain').click();
  expect(page.field('data')?.querySelector('input')?.value).toBe('book.txt');
});

test('a cost of earlier settings says that it is, and a cell of earlier settings goes', async () => {
  const page = await form();
  page.button('Look at data and cost').click();
  const stale = () => page.el.querySelector<HTMLElement>('.preview .stale')?.hidden;
  await page.tell('answer', 'rehearse', { value: { plan: { notes: [] }, lengths: [[1, 4, 2]], examples: [] } });
  expect(stale()).toBe(true);
  page.button('Copy as cell').click();
  await page.tell('answer', 'cell', { value: { cell: '%%gpt_finetune reviews\n', command: 'gptx-nb' } });
  const written = page.el.querySelector<HTMLElement>('.written');
  expect(written?.hidden).toBe(false);
  type(page, 'epochs', '60');
  expect([stale(), written?.hidden]).toEqual([false, true]);
  type(page, 'epochs', '3');
  expect(stale()).toBe(true);
  type(page, 'epochs', '60');
  page.button('Look again').click();
  expect(stale()).toBe(true);
  expect(page.asked('rehearse')).toMatchObject({ recipe: { epochs: 60 } });
});

test('what is wrong with the data stands where the table would, and every column can be chosen', async () => {
  const page = await form();
  page.button('Look at data and cost').click();
  const table = { columns: ['a'], rows: [['x']], count: 1, error: null };
  const report = {
    task: 'text-generation',
    why: '',
    text: 'a',
    rows: 1,
    used: 1,
    train: 1,
    validation: 0,
    warnings: []
  };
  await page.tell('part', 'rehearse', { value: { ...table, report } });
  expect(page.field('label')?.hidden).toBe(true);
  page.button('Look at data and cost').click();
  await page.tell('part', 'rehearse', { value: { ...table, report: null } });
  await page.tell('answer', 'rehearse', { error: `every row has the label ${HACK}`, field: null });
  expect(page.el.querySelector('.preview .error')?.textContent).toContain('every row has the label');
  expect(page.el.querySelector('.gptx-Form-message')?.textContent).toBe('');
  expect(page.field('label')?.hidden).toBe(false);
});

test('a command for the terminal says that a terminal has no variables', async () => {
  const page = await form();
  Object.defineProperty(navigator, 'clipboard', { configurable: true, value: { writeText: () => Promise.resolve() } });
  page.button('Copy as command').click();
  await page.tell('answer', 'cell', { value: { cell: '', command: 'gptx-nb finetune reviews --data=df' } });
  expect(page.el.querySelector('.configure .said')?.textContent).toContain('name a file there');
});

test('a cell is shown and copied, and handed to JupyterLab where that is there', async () => {
  const page = await form();
  const copied: string[] = [];
  Object.defineProperty(navigator, 'clipboard', {
    configurable: true,
    value: { writeText: (text: string) => Promise.resolve(copied.push(text)) }
  });
  page.button('Copy as cell').click();
  await page.tell('answer', 'cell', { value: { cell: '%%gpt_finetune reviews\n', command: 'gptx-nb' } });
  expect(copied).toEqual(['%%gpt_finetune reviews\n']);
  document.addEventListener('gptx-nb:insert-cell', event => event.preventDefault(), { once: true });
  page.button('Insert below').click();
  await page.tell('answer', 'cell', { value: { cell: '%%gpt_finetune reviews\n', command: 'gptx-nb' } });
  expect(page.el.querySelector('.configure .said')?.textContent).toBe('It stands in a new cell.');
});

test('a question goes to the tuned and to the base model, and what is written comes in pieces', async () => {
  const page = new Page();
  page.tab('Ask');
  await page.tell('answer', 'runs', { value: { runs } });
  const [list] = [...page.el.querySelectorAll<HTMLSelectElement>('.ask select')];
  if (list) {
    list.value = 'reviews/1';
    list.dispatchEvent(new Event('change'));
  }
  const area = page.el.querySelector<HTMLTextAreaElement>('.ask textarea');
  if (area) {
    area.value = 'Great';
  }
  page.el.querySelector<HTMLButtonElement>('.ask button')?.click();
  const puts = page.model.sent.filter(each => (each as Asked).what === 'put') as Asked[];
  expect(puts.map(each => [each['who'], each['run'], each['text']])).toEqual([
    ['tuned', 'reviews/1', 'Great'],
    ['base', 'reviews/1', 'Great']
  ]);
  page.model.tell('msg:custom', { kind: 'part', id: puts[1]?.id, value: { text: HACK } }, []);
  expect(page.el.querySelector('[aria-label="Base model"] .gptx-Ask-written')?.textContent).toBe(HACK);
  const labels = [['yes', 0.75], [HACK, 0.25]]; // prettier-ignore
  page.model.tell(
    'msg:custom',
    { kind: 'answer', id: puts[0]?.id, value: { who: 'reviews v1', labels, notes: [] } },
    []
  );
  await vi.waitFor(() => expect(page.el.querySelectorAll('.gptx-Ask-label')).toHaveLength(2));
  expect(page.el.querySelector('.gptx-Ask-label')?.textContent).toBe('yes0.750');
  page.button('Stop').click();
  expect(page.model.sent[page.model.sent.length - 1]).toEqual({ kind: 'withdraw', id: puts[1]?.id });
  expect(page.el.querySelector('img')).toBeNull();
});

test('chosen runs are compared: what differs, scores, who was taken for whom', async () => {
  const page = new Page();
  page.tab('Compare');
  await page.tell('answer', 'runs', { value: { runs } });
  page.el.querySelectorAll<HTMLInputElement>('.runs input').forEach(box => box.click());
  expect(page.asked('compare')).toMatchObject({ runs: ['reviews/1', 'reviews/2'] });
  const curves = { steps: [1, 2], loss: [1, 0.5], scored: [2], held_out: [0.4], score: [0.9], score_name: 'accuracy' };
  const one = { id: 'reviews/1', called: 'reviews v1', verdict: HACK, transfer: '', samples: [], scored: true };
  await page.tell('answer', 'compare', {
    value: {
      runs: [{ ...one, labels: ['a', HACK], confusion: [[1, 2], [3, 4]], curves }], // prettier-ignore
      scores: [['accuracy', '0.9', '']],
      settings: [['data', 'df', HACK]]
    }
  });
  expect(page.el.querySelector('.compare')?.textContent).toContain(`datadf${HACK}`);
  expect(page.el.querySelector('.compare')?.textContent).toContain(`${HACK}34`);
  const details = page.el.querySelector('.compare details');
  details?.setAttribute('open', '');
  const worst = [{ text: HACK, right: 'a', said: 'b', share: 0.125 }];
  await page.tell('answer', 'extremes', { value: { rows: 2, worst, best: [] } });
  expect(page.asked('extremes')).toMatchObject({ run: 'reviews/1' });
  expect(details?.textContent).toContain(`${HACK}ab0.125`);
  expect(page.el.querySelector('img')).toBeNull();
});

test('as many runs are compared as can be told apart, and that is said where there are more', async () => {
  const page = new Page();
  page.tab('Compare');
  const many = Array.from({ length: 10 }, (_, at) => ({ ...runs[1], id: `reviews/${at}`, version: at }));
  await page.tell('answer', 'runs', { value: { runs: many } });
  const boxes = [...page.el.querySelectorAll<HTMLInputElement>('.runs input')];
  const full = () => page.el.querySelector('.compare [role="status"]')?.textContent;
  boxes.slice(0, 8).forEach(box => box.click());
  expect(full()).toBe('8 runs are chosen, as many as one chart can tell apart. Take one away to choose another.');
  expect(boxes.map(box => box.disabled)).toEqual([...Array<boolean>(8).fill(false), true, true]);
  boxes[0]?.click();
  expect([full(), boxes.some(box => box.disabled)]).toEqual(['', false]);
  boxes[9]?.click();
  expect(page.asked('compare')).toMatchObject({ runs: [1, 2, 3, 4, 5, 6, 7, 9].map(at => `reviews/${at}`) });
  const curves = { steps: [], loss: [], scored: [], held_out: [], score: [], score_name: '' };
  const labels = Array.from({ length: 13 }, (_, at) => `label ${at}`);
  const one = { id: 'reviews/1', called: 'reviews v1', verdict: '', transfer: '', samples: [], scored: false, curves };
  const wrong = { labels, confusion: labels.map(() => [1]), mistakes: [['a', HACK, '1,234']], more_mistakes: 3 };
  const none = { ...wrong, mistakes: [], more_mistakes: 0 };
  await page.tell('answer', 'compare', {
    value: {
      runs: [
        { ...one, ...wrong },
        { ...one, ...none }
      ],
      scores: [['accuracy', '0.9', '0.85']],
      settings: []
    }
  });
  const told = page.el.querySelector('.compare')?.textContent;
  expect(told).toContain(`Most frequent mistakes, of 13 labelslabeltaken forrowsa${HACK}1,234… 3 more`);
  expect(told).toContain('Most frequent mistakes, of 13 labels: none');
  const numbers = [...page.el.querySelectorAll('.compare td.right')].map(each => each.textContent);
  expect(numbers.slice(0, 2)).toEqual(['0.9', '0.85']);
});

test('tabs are moved between by arrows, and each says what it controls', () => {
  const page = new Page();
  const bar = page.el.querySelector('[role="tablist"]');
  bar?.dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowRight', bubbles: true }));
  expect(document.activeElement?.textContent).toBe('Watch');
  bar?.dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowLeft', bubbles: true }));
  bar?.dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowLeft', bubbles: true }));
  expect(document.activeElement?.textContent).toBe('Compare');
  const parts = [...page.el.querySelectorAll<HTMLElement>('[role="tabpanel"]')];
  expect(parts.map(each => each.hidden)).toEqual([true, true, true, false]);
  expect(parts[3]?.getAttribute('aria-labelledby')).toBe(document.activeElement?.id);
});

test('a run that cannot be watched is refused in words, and the list names the one that is still shown', async () => {
  const page = new Page();
  const shown = { name: 'reviews', version: 1, state: 'running', doing: 'training', active: true, can: ['stop'] };
  page.model.state['head'] = shown;
  page.model.tell('change');
  page.tab('Watch');
  await page.tell('answer', 'runs', { value: { runs } });
  const list = page.el.querySelector<HTMLSelectElement>('.choice select');
  const choose = (run: string) => {
    if (list) {
      list.value = run;
      list.dispatchEvent(new Event('change'));
    }
  };
  choose('reviews/2');
  await page.tell('answer', 'watch', { error: `run 'reviews' has no version 2 ${HACK}` });
  expect(page.el.querySelector('[role="alert"]:not([hidden]).error')?.textContent).toContain(HACK);
  expect(list?.value).toBe('reviews/1');
  await page.tell('answer', 'runs', { value: { runs: runs.slice(0, 1) } });
  expect(list?.textContent).not.toContain('v2');
  page.model.tell(
    'msg:custom',
    { kind: 'more', number: 1, head: { state: 'deleted', doing: 'deleted', active: false, can: [] }, after: null },
    []
  );
  await vi.waitFor(() => expect(page.el.querySelector('.title')?.textContent).toBe('reviews v1 · deleted'));
  expect([...page.el.querySelectorAll<HTMLElement>('.watch header button')].filter(each => !each.hidden)).toEqual([]);
  expect(page.el.querySelector<HTMLElement>('.progress')?.hidden).toBe(true);
  await page.tell('answer', 'runs', { value: { runs: [] } }); // it has asked again
  expect(list?.value).toBe('');
});

test('two panels of a page share no id, and a label of the second leads to its own control', async () => {
  for (let count = 0; count < 2; count++) {
    vi.resetModules(); // as anywidget does, which loads the module anew for each widget
    const page = new Page((await import('../src/panel')).default);
    await page.tell('answer', 'open', { value: opened });
  }
  const ids = [...document.querySelectorAll('[id]')].map(each => each.id);
  expect(ids.length).toBeGreaterThan(60);
  expect(ids.filter((id, at) => ids.indexOf(id) !== at)).toEqual([]);
  for (const label of document.querySelectorAll('label')) {
    expect(label.control?.closest('.desk')).toBe(label.closest('.desk'));
  }
});

test('tokens that are not predicted are greyed, and lengths are told in words too', () => {
  const written = example({ pieces: [['Q: ', false], ['Yes\n', true]], label: null, tokens: 2 }); // prettier-ignore
  expect([...written.querySelectorAll('.masked')].map(each => each.textContent)).toEqual(['Q: ']);
  expect(written.querySelector('.tokens')?.textContent).toBe('Q: Yes↵\n');
  expect(example({ pieces: [['Good', false]], label: 'yes', tokens: 1 }).querySelector('.masked')).toBeNull();
  expect(
    lengths([[1, 2, 5]])
      .querySelector('[role="img"]')
      ?.getAttribute('aria-label')
  ).toContain('1 to 2: 5');
});
