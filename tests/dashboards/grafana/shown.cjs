// What Grafana's own code makes of the answers to a panel: transformations, then overrides, then the text of each cell.
// stdin: [{"panel": {...}, "frames": [{"refId": ..., "fields": [{"name": ..., "type": ..., "values": [...]}]}]}]; stdout: the tables.
"use strict";

globalThis.navigator = { language: "en", languages: ["en"] };
const { readFileSync } = require("node:fs");
const { firstValueFrom } = require("rxjs");
const data = require("@grafana/data");
globalThis.window = globalThis; // only now: its packages take it for a browser when they are loaded

const transformers = new Map(Object.values(data.standardTransformers).map((each) => [each.id, each]));
data.standardTransformersRegistry.setInit(() =>
  [...transformers].map(([id, each]) => ({ id, name: id, transformation: async () => each })),
);
const processors = {
  unit: data.unitOverrideProcessor,
  displayName: data.displayNameOverrideProcessor,
  mappings: data.valueMappingsOverrideProcessor,
};
const registry = new data.Registry(() =>
  Object.entries(processors).map(([id, process]) => ({
    id,
    path: id,
    name: id,
    process,
    shouldApply: () => true,
    settings: { expandTemplateVars: id === "displayName" }, // as Grafana's own pages register it
  })),
);
const theme = data.createTheme();

async function shown({ panel, frames, variables }) {
  const replaceVariables = (text) => text.replace(/\$\{(\w+)\}/g, (whole, name) => variables?.[name] ?? whole);
  const given = frames.map((frame) => data.toDataFrame(frame));
  const made = await firstValueFrom(
    data.transformDataFrame(panel.transformations ?? [], given, { interpolate: replaceVariables }),
  );
  const fieldConfig = panel.fieldConfig;
  const drawn = data.applyFieldOverrides({ data: made, fieldConfig, theme, replaceVariables, fieldConfigRegistry: registry });
  return drawn.map((frame) => ({
    columns: frame.fields.map((field) => data.getFieldDisplayName(field, frame, drawn)),
    rows: Array.from({ length: frame.length }, (_, row) =>
      frame.fields.map((field) => data.formattedValueToString(field.display(field.values[row]))),
    ),
  }));
}

async function main() {
  const asked = JSON.parse(readFileSync(0, "utf8"));
  const units = data.getValueFormats().flatMap((category) => category.submenu.map((unit) => unit.value));
  const tables = [];
  for (const each of asked) {
    tables.push(await shown(each));
  }
  console.log(JSON.stringify({ units, transformers: [...transformers.keys()], tables }));
}

main();
