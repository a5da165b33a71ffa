/** What a chart needs of a style sheet, wherever it is shown: in a page of JupyterLab, or in an output without one. */

const RULES = `
.gptx-Chart { min-width: 0; margin: 0; color: inherit; }
.gptx-Chart figcaption { color: var(--jp-ui-font-color2, inherit); display: flex; justify-content: space-between; gap: 12px; }
.gptx-Chart-at { font-variant-numeric: tabular-nums; }
.gptx-Chart-plot { position: relative; outline-offset: 2px; }
.gptx-Chart-nothing { position: absolute; inset: 8px 10px 36px 46px; display: flex; align-items: center; justify-content: center; color: var(--jp-ui-font-color2, inherit); border: 1px dashed var(--jp-border-color2, rgba(128,128,128,0.35)); border-radius: var(--jp-border-radius, 2px); }
.gptx-Chart-plot:focus-visible { outline: 2px solid var(--jp-brand-color1, #1976d2); }
.gptx-Chart-legend { display: flex; flex-wrap: wrap; gap: 2px 14px; min-height: 1.5em; padding-left: 44px; }
.gptx-Chart-legend > span { overflow-wrap: anywhere; min-width: 0; }
.gptx-Chart-mark { display: inline-block; width: 14px; height: 0; margin-right: 5px; vertical-align: middle; border-top: 3px solid; }
.gptx-Chart-value { display: inline-block; min-width: 3.6em; margin-left: 5px; font-variant-numeric: tabular-nums; }
.gptx-Chart .uplot, .gptx-Chart .uplot * { box-sizing: border-box; }
.gptx-Chart .u-wrap { position: relative; user-select: none; }
.gptx-Chart .u-over, .gptx-Chart .u-under { position: absolute; }
.gptx-Chart .u-over { cursor: crosshair; }
.gptx-Chart .u-under { overflow: hidden; }
.gptx-Chart .u-axis { position: absolute; }
.gptx-Chart canvas { display: block; position: relative; width: 100%; height: 100%; }
.gptx-Chart .u-select { position: absolute; pointer-events: none; background: var(--jp-brand-color1, #1976d2); opacity: 0.18; }
.gptx-Chart .u-cursor-x, .gptx-Chart .u-cursor-y { position: absolute; left: 0; top: 0; pointer-events: none; }
.gptx-Chart .u-cursor-x { height: 100%; border-right: 1px dashed var(--jp-ui-font-color2, #808080); }
.gptx-Chart .u-cursor-y { display: none; }
.gptx-Chart .u-cursor-pt { position: absolute; left: 0; top: 0; pointer-events: none; border: 0 solid; border-radius: 50%; }
.gptx-Chart .u-off { display: none; }
`;

/** Put the rules beside `node`: into its shadow tree if it is in one, else once into the page. */
export function addStyle(node: Node): void {
  const root = node.getRootNode();
  const place = root instanceof ShadowRoot ? root : document.head;
  if (place.querySelector('style[data-gptx-chart]')) {
    return;
  }
  const style = document.createElement('style');
  style.dataset['gptxChart'] = '';
  style.textContent = RULES;
  place.append(style);
}
