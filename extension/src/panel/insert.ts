/** The event by which a live view hands a cell to JupyterLab (src/index.ts), which takes it by `preventDefault`. */
export const INSERT = 'gptx-nb:insert-cell';
