// Types of what Gradio hands to the scripts in this folder, of what the server sends them, and of the parts of the page.

export {};

declare global {
  // Gradio runs the script of a component with these.
  const element: HTMLElement;
  const props: { readonly value: unknown };
  const server: Server;
  function trigger(event: "apply" | "delete" | "edit" | "end" | "input" | "select" | "stop" | "undo", data?: object): void;
  function watch(prop: "value", changed: () => void): void;

  interface Window {
    limnerSaved?: () => Promise<void>; // of captions.js
    limnerSelection?: () => Chosen & { sent: Moment }; // of captions.js: what the grid is to show
    limnerFields: { // of fields.js
      store(fields: Record<string, string | boolean>): Promise<void>;
      moment(): Moment;
      post(typed: object): Promise<Response>;
      isStored(id: string): boolean; // whether what is typed in this field is stored
    };
    limner: { // of start.js
      open(project: string, report?: string): void;
      show(change: { tab?: string; run?: string }): void;
      arrive(project: string): void;
      answered(): Promise<unknown>; // when all requests of Gradio are answered that have been sent so far
      // The values of fields at this moment, once requests that fill them and were made before it are answered.
      filled(fields: string[], values: unknown[]): Promise<unknown[]>;
      ask(question: string, text?: string): Promise<string>; // what was typed, or "yes"; "" if it was canceled
    };
    gradio_config: { // of Gradio
      dependencies: { id: number; outputs: number[] }[];
      components: { id: number; type: string; props: { elem_id?: string } }[];
    };
    limnerRun: { choose(run: string): void; seen(run?: string | null): { stamp?: string; runs?: string[] } }; // of run_view.js
    limnerSheet: { ask(): number; end(): void; latest(): number }; // of sheet.js: the number of the images that are waited for
    limnerForm?: { // of form_notes.js, once the Train tab has been opened
      store(): Promise<void>;
      save(file: { name: string; text: string }): void;
    };
  }

  // Functions of the server that take and return JSON.
  type Answer<T = object> = ({ ok: true } & T) | { ok: false; error: string };
  type Image = { project: string; name?: string };
  interface Server {
    save_caption(draft: Draft): Promise<Answer<({ at: number; caption: string } & Judged) | { conflict: string } | { gone: string }>>;
    measure(of: { project: string }): Promise<Answer<{ left: number }>>;
    remove(images: Removal): Promise<Answer<{ report: string; at: number }>>;
    edit_image(edit: Image & { action: string; turns?: number; box?: number[] | null }): Promise<Answer>;
    describe_crop(crop: Image & { box: number[] }): Promise<Answer<{ text: string }>>;
    save_mask(mask: Image & { png?: string; transparency?: boolean }): Promise<Answer>;
  }

  // Values of components; that of one which is not filled yet has no fields.
  type Progress = (share: number) => void;
  type Added = { project: string; report: string; bad: boolean; trigger?: string }; // what became of files that were added
  type View<T> = { readonly value: T | { [field in keyof T]?: undefined } | null };
  type Removal = { project: string; names: string[] };
  type Moment = { page: string; number: number }; // when something was done, in the order of the acts of a tab
  type Draft = Moment & { project: string; name: string; text: string; base?: string };
  type Typed = Moment & { project: string; name: string; value: string | boolean };
  type Judged = { badges: string[]; tokens: string; long: string };
  type Card = Judged & { size: number[]; crop: number[] } & Record<
    "name" | "url" | "large" | "mask" | "large_mask" | "caption" | "proposed" | "look" | "ratio" | "cut" | "facts" | "edited", string>;
  type Chosen = { page: number; order: string; kind: string; tag: string };
  type CaptionGrid = {
    project: string; at: number; page: number; last: number; left: number; items: Card[]; any: boolean; paged: boolean;
    asked: Chosen; selection: Chosen;
    only: string; proposals: string; orders: Record<"key" | "title" | "selected", string>[];
    pages: { number: number; current: string; label: string }[];
  };
  type Side = Record<"name" | "url" | "text", string>;
  type Finding = { pairs: [kept: Side, copy: Side][]; remove: string[] } & Record<
    "kind" | "title" | "effect" | "remedy" | "files" | "look" | "button" | "show", string>;
  type Bucket = { label: string; count: number };
  type Overview = {
    findings: Finding[]; heading: string; serious: string; sizes: Bucket[]; tags: { tag: string; count: number }[];
  };
  type Point = [step: number, loss: number, rate: number];
  type Curve = {
    label: string; steps: number; points: Point[]; held_out: [step: number, loss: number][]; held_label: string;
    checkpoints: number[]; images: [step: number, address: string][];
  };
  type Chart = { label: string; runs: Curve[] };
  type RunView = {
    revision: number; asked: string; run: string; stamp: string; runs: string[]; parts: Record<string, string>; chart: Chart;
  };
  type FormNotes = {
    changed: Record<string, string>; conflicts: Record<string, { reason: string; fix: string }>;
    words: { reset: string; none: string };
  };

  // Parts that the page always has where a script looks for them, by the selectors of the scripts.
  type Parts = Record<Box, HTMLElement> & Record<Field, HTMLInputElement> & Record<Button, HTMLButtonElement> & {
    ".order": HTMLSelectElement; "a[data-caption]": HTMLAnchorElement; ".shape": HTMLAnchorElement; ".save": HTMLAnchorElement;
    ".then": HTMLImageElement; ".mask": HTMLImageElement; ".other img": HTMLImageElement; ".over": SVGSVGElement; ".over path": SVGPathElement;
    textarea: HTMLTextAreaElement; template: HTMLTemplateElement; "dialog.viewer": HTMLDialogElement;
    progress: HTMLProgressElement; table: HTMLTableElement; img: HTMLImageElement; "figure img": HTMLImageElement;
  };
  // Attributes that scripts read only where the page sets them.
  interface DOMStringMap { name: string; project: string; run: string; group: string; act: string; event: string; text: string; size: string; kind: string }
  type Find = ParentNode["querySelector"];
  type Attributes = Record<string, string | number | boolean>;

  interface ParentNode {
    querySelector<S extends keyof Parts>(part: S): Parts[S];
    querySelectorAll<S extends keyof Parts>(part: S): NodeListOf<Parts[S]>;
  }
  interface Element {
    closest<S extends keyof Parts>(part: S): Parts[S] | null;
    matches(part: Field): this is HTMLInputElement;
    matches(part: ".order"): this is HTMLSelectElement;
    setAttribute(name: string, value: string | number | boolean): void;
  }
  // What is listened to on elements happens to elements.
  type On<E> = E & { readonly target: HTMLElement };
  interface HTMLElement {
    addEventListener<K extends keyof HTMLElementEventMap>(
      type: K, listener: (event: On<HTMLElementEventMap[K]>) => void, capture?: boolean): void;
  }
  interface HTMLDialogElement {
    addEventListener<K extends keyof HTMLElementEventMap>(
      type: K, listener: (event: On<HTMLElementEventMap[K]>) => void, capture?: boolean): void;
  }
  interface Document {
    addEventListener<K extends keyof DocumentEventMap>(
      type: K, listener: (event: On<DocumentEventMap[K]>) => void, capture?: boolean): void;
  }
  interface DocumentEventMap {
    "limner-shown": CustomEvent<HTMLAnchorElement>; // the link whose image the viewer shows
    "limner-view": CustomEvent<HTMLAnchorElement[]>;
    "limner-show-again": CustomEvent;
    "limner-remove": CustomEvent<string[]>; // the names of images
    "limner-filter": CustomEvent<{ kind?: string; tag?: string }>;
  }
}

type Field =
  | "input" | ".pick" | "#captions .pick" | ".smoothing" | ".log" | ".rate" | ".brush" | ".tag" | ".new"
  | "[type=checkbox], [type=radio]" | "input, textarea" | "input:checked" | "#upload input[type='file']" | "#folder" | "#find-setting";
type Button =
  | "button" | "button[data-act]" | "button[data-event]" | "button:not(:disabled)" | "button.bin, button.rename, button.again, button.copy" | ".remove"
  | ".discard" | ".show" | ".mend" | ".pairs" | ".step" | ".fold" | ".reset-group" | ".apply" | ".page";
type Box =
  | "#captions" | "#status" | "#previews" | "#status [data-run]" | "#log-text" | "#train-form" | "#tab-train-button" | "[id^='form-']" | "[id^='form-'], #name" | ".section" | ".found"
  | "p.changed, p.conflict" | "h2" | "p" | ".card" | ".run-row" | ".cards" | ".cut" | ".proposed" | ".file" | ".conflict"
  | ".tokens" | ".badges" | ".only" | ".filter" | ".keys" | ".proposals" | ".proposals .count" | ".empty"
  | ".none-left" | ".no-pictures" | ".pages" | "q" | ".title" | ".play" | ".advice" | ".quiet" | ".doctor" | ".tags" | ".sizes" | ".bars"
  | ".chips" | "summary" | "ul" | "li" | "li[data-run]" | "tbody tr" | "thead th" | "th" | ".selection"
  | ".count" | ".uncover" | ".running-upload" | ".share" | ".cancel-upload" | "figcaption" | ".finding" | ".reading"
  | ".other" | ".nearest" | ".sheet" | ".strip, .pictures, .cards" | "span" | ".loss-tools" | ".whole" | ".legend"
  | ".status" | ".edit" | ".cropping" | ".original" | ".paint" | ".painting-tools" | ".erase";
