// Whether searches may be kept, and what was done with their results be told. By default they may; a browser's signal for
// Global Privacy Control, or the switch on the page, says no.

import { recall, remember } from "./memory.js";

const keepSwitch = document.getElementById("keep");

export const mayKeep = () => keepSwitch.checked;

if (navigator.globalPrivacyControl) keepSwitch.disabled = true;
else keepSwitch.checked = recall("keep") !== "no";
keepSwitch.addEventListener("change", () => remember("keep", mayKeep() ? "yes" : "no"));
