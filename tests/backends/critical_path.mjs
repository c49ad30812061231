// Runs the critical-path code of Jaeger's own user interface on a trace, as its page does.
//
//   node critical_path.mjs FOLDER-OF-BUILT-PAGES < trace.json > sections.json
//
// In: a trace as `/api/traces/{id}` has it under `data[0]`. Out: [{"spanId", "section_start", "section_end"}], microseconds.
// The pages are one bundle for a browser. It runs here up to the point at which these functions exist and nothing is drawn yet;
// what it asks of a browser until then is answered by objects that are everything and do nothing.
import { readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import vm from "node:vm";

const PAGE = "http://localhost/";
const REACHED = "the functions are there";
const AFTER = "const UI_ROOT_ID=";

const nothing = new Proxy(function () {}, {
  get: (_, key) => (key === Symbol.toPrimitive ? () => "" : key === Symbol.iterator ? function* () {} : nothing),
  apply: () => nothing,
  construct: () => nothing,
  set: () => true,
});
const with_ = (known) => new Proxy(known, { get: (of, key) => (key in of ? of[key] : nothing), set: () => true, has: () => true });

const location = with_({ href: PAGE, origin: PAGE.slice(0, -1), pathname: "/", search: "", hash: "", protocol: "http:", host: "localhost" });
const document = with_({
  baseURI: PAGE,
  cookie: "",
  querySelector: (what) => (what === "base" ? { href: PAGE, getAttribute: () => "/" } : null),
});
const window = with_({
  document,
  location,
  navigator: with_({ userAgent: "node", platform: "node", language: "en" }),
  getJaegerUiConfig: () => null,
  getJaegerStorageCapabilities: () => ({ archiveStorage: false }),
  getJaegerVersion: () => ({ gitCommit: "", gitVersion: "", buildDate: "" }),
});
const browser = { window, self: window, document, location, navigator: window.navigator };
for (const name of ["Element", "HTMLElement", "MutationObserver", "Node", "ResizeObserver", "addEventListener", "cancelAnimationFrame",
  "fetch", "getComputedStyle", "history", "localStorage", "requestAnimationFrame", "sessionStorage"]) browser[name] = nothing;
const standard = { console: { ...console, log: console.error }, URL, URLSearchParams, TextEncoder, TextDecoder, setTimeout, clearTimeout,
  queueMicrotask, performance };

const folder = join(process.argv[2], "static");
const bundle = readFileSync(join(folder, readdirSync(folder).find((name) => /^index-.*\.js$/.test(name))), "utf8");
const at = bundle.indexOf(AFTER);
if (at < 0) throw new Error(`no ${AFTER} in the bundle: another version of Jaeger's pages`);
const script = `${bundle.slice(0, at)};globalThis.jaeger={criticalPathForTrace,transformTraceData};throw "${REACHED}";${bundle.slice(at)}`
  .replace(/export\{[^}]*\};\s*$/, "")
  .replaceAll("import.meta.url", `"${PAGE}x.js"`);

const context = vm.createContext({ ...browser, ...standard });
try {
  vm.runInContext(script, context);
} catch (error) {
  if (error !== REACHED) throw new Error(`the bundle does not run here: ${error.message}`); // the error itself shows the whole bundle
}
const { criticalPathForTrace, transformTraceData } = context.jaeger;
console.log(JSON.stringify(criticalPathForTrace(transformTraceData(JSON.parse(readFileSync(0, "utf8"))))));
