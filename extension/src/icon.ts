/** The extension's icons, in the colours of JupyterLab's own: a curve that comes down, and a question. */

import { LabIcon } from '@jupyterlab/ui-components';

export const gptxIcon = new LabIcon({
  name: 'gptx-nb:runs',
  svgstr:
    '<svg xmlns="http://www.w3.org/2000/svg" width="16" viewBox="0 0 24 24">' +
    '<g class="jp-icon3" fill="#616161">' +
    '<path d="M3 3h2v16h16v2H3z"/>' +
    '<path d="M7 5c1.2 6.6 4.400 9.300 13 10.100v-2C13 12.400 10.100 10.100 9 4.600z"/>' +
    '<circle cx="18" cy="7" r="2.600"/>' +
    '</g></svg>'
});

export const askIcon = new LabIcon({
  name: 'gptx-nb:ask',
  svgstr:
    '<svg xmlns="http://www.w3.org/2000/svg" width="16" viewBox="0 0 24 24">' +
    '<g class="jp-icon3" fill="#616161">' +
    '<path d="M4 3h16a2 2 0 0 1 2 2v11a2 2 0 0 1-2 2h-9l-5 4v-4H4a2 2 0 0 1-2-2V5a2 2 0 0 1 2-2zm0 2v11h4v2l2.500-2H20V5z"/>' +
    '<path d="M6 8h12v1.800H6zm0 3.500h8v1.800H6z"/>' +
    '</g></svg>'
});
