// The fields of an application and what is sent for them (contract 24 section 2).

import { el, shown } from "./api.js";

const valueTypes = {
  input_file: "file", input_directory: "file", text: "text", textarea: "text", integer: "integer", floating_point: "floating_point",
  boolean: "boolean", enumeration: "text", workflow: "workflow", modules: "modules", peer: "peer",
};

// presetOf is the default value of a parameter, which comes in three forms.
function presetOf(p) {
  const v = p.defaultValue;
  return v !== null && typeof v === "object" && "value" in v ? v.value : v;
}

function control(p) {
  const preset = presetOf(p), required = !p.optional && (preset === null || preset === undefined || preset === "");
  const shared = { name: p.name, required, autocomplete: "off" };
  switch (p.type) {
    case "boolean":
      return el("input", { name: p.name, type: "checkbox", checked: preset === true || preset === "true" });
    case "enumeration": {
      const e = el("select", { name: p.name }, ...(p.optional ? [new Option("", "")] : []),
        ...(p.options || []).map((o) => new Option(shown(o.name), o.value)));
      if (preset !== null && preset !== undefined) e.value = preset;
      return e;
    }
    case "textarea": case "workflow":
      return el("textarea", { ...shared, rows: 6, spellcheck: false, value: preset ?? "" });
    case "modules":
      return el("select", { name: p.name, multiple: true }, ...(p.supportedModules || []).map((m) => new Option(shown(m.name), m.name)));
    case "integer": case "floating_point": {
      const e = el("input", { ...shared, type: "number", step: p.step || (p.type === "integer" ? 1 : "any"), value: preset ?? "" });
      if (p.min !== null && p.min !== undefined) e.min = p.min;
      if (p.max !== null && p.max !== undefined) e.max = p.max;
      return e;
    }
    default:
      return el("input", { ...shared, value: preset ?? "", placeholder: valueTypes[p.type] === "file" ? "/drive/path" : "" });
  }
}

// fields makes a labelled control for each parameter that can be given here.
export function fields(parameters) {
  return parameters.filter((p) => valueTypes[p.type]).map((p) => {
    const title = (p.title || p.name) + (p.optional ? " (optional)" : "") + (p.unitName ? ", " + p.unitName : "");
    return el("label", {}, el("span", {}, shown(title)), control(p), p.description ? el("small", { className: "detail" }, shown(p.description)) : null);
  });
}

// number keeps a number as it was typed: an integer above 2^53 must not go through floating point.
const number = (text) => (JSON.rawJSON ? JSON.rawJSON(String(Number.isInteger(Number(text)) ? BigInt(text) : Number(text))) : Number(text));

// values is what is sent. What was left empty is not.
export function values(parameters, form) {
  const out = {};
  for (const p of parameters) {
    const type = valueTypes[p.type], e = type && form.querySelector(`[name="${CSS.escape(p.name)}"]`);
    if (!e || (e.value === "" && type !== "boolean")) continue;
    switch (type) {
      case "boolean": out[p.name] = { type, value: e.checked }; break;
      case "integer": case "floating_point": out[p.name] = { type, value: number(e.value) }; break;
      case "file": out[p.name] = { type, path: e.value, readOnly: false }; break;
      case "peer": out[p.name] = { type, hostname: p.name, jobId: e.value }; break;
      case "modules": out[p.name] = { type, modules: [...e.selectedOptions].map((o) => o.value) }; break;
      case "workflow":
        out[p.name] = { type, specification: { applicationName: "", language: "JINJA2", init: null, job: e.value, readme: null, inputs: [] } };
        break;
      default: out[p.name] = { type, value: e.value };
    }
  }
  return out;
}
