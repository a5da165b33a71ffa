/**
 * The notebook panel's front end: an ES module for anywidget, bundled into gptx_nb/views/static/panel.js.
 *
 * anywidget calls the default export once for each widget. `initialize` begins to follow its kernel; `render` draws one
 * view and returns how it is undone. A page that is loaded again, and a second view, draw from the same history.
 */

import { h } from '../views/dom';
import { send } from './channel';
import { Desk } from './desk';
import { feedOf, type Feed } from './feed';
import css from './panel.css';
import { whileSeen } from './seen';
import type { Acted, Context, Model, More, RenderContext } from './types';
import { Watch } from './watch';

export default () => {
  let model: Model | undefined; // the one of initialize: those of render differ, and end with their view
  let feed: Feed | undefined;
  return {
    initialize({ model: given }: Context): void {
      model = given;
      feed = feedOf(given);
    },
    render({ el }: RenderContext): (() => void) | undefined {
      if (!model || !feed) {
        return undefined;
      }
      return model.get('view') === 'panel' ? renderDesk(el, model, feed) : renderRun(el, model, feed);
    }
  };
};

/** Make the frame of a view: everything is inside, its style sheet too. */
function frame(el: HTMLElement): HTMLElement {
  const root = h('div', { class: 'gptx-panel' });
  const style = h('style', {});
  style.textContent = css;
  el.append(style, root);
  return root;
}

interface View {
  node: HTMLElement;
  see(seen: boolean): void;
  acted(message: Acted): void;
  dispose(): void;
}

function renderRun(el: HTMLElement, model: Model, feed: Feed): () => void {
  return shown(el, model, new Watch(feed, message => send(model, message)));
}

function renderDesk(el: HTMLElement, model: Model, feed: Feed): () => void {
  return shown(el, model, new Desk(model, feed));
}

/** Put a view into its frame, tell it what is said to it, and whether it is seen. */
function shown(el: HTMLElement, model: Model, view: View): () => void {
  const root = frame(el);
  root.append(view.node);
  const heard = (message: More | Acted) => {
    if (message.kind === 'acted' || message.kind === 'cell') {
      view.acted(message);
    }
  };
  model.on('msg:custom', heard);
  const identity = Math.random().toString(36); // crypto's are for pages over HTTPS alone
  const unseen = whileSeen(root, seen => {
    view.see(seen);
    send(model, { kind: 'seen', view: identity, seen });
  });
  return () => {
    unseen();
    model.off('msg:custom', heard);
    view.dispose();
    el.replaceChildren();
  };
}
