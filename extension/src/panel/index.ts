/**
 * The notebook panel's front end: an ES module for anywidget, bundled into gptx_nb/views/static/panel.js.
 *
 * anywidget calls the default export once for each view's bundle; `render` draws one view and returns how it is undone.
 */

export interface Model {
  get(name: string): unknown;
  on(event: string, callback: () => void): void;
  off(event: string, callback: () => void): void;
}

export interface RenderContext {
  model: Model;
  el: HTMLElement;
}

export default () => ({
  render({ model, el }: RenderContext): () => void {
    const line = document.createElement('div');
    const show = () => {
      const text = model.get('line');
      line.textContent = typeof text === 'string' ? text : '';
    };
    show();
    model.on('change:line', show);
    el.append(line);
    return () => {
      model.off('change:line', show);
      line.remove();
    };
  }
});
