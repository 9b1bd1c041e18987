// The page: which view is shown, when the daemon is asked, and how old what is shown may be.

import * as daemon from "./daemon.js";
import { LinkView } from "./link.js";
import { MeshView } from "./mesh.js";
import { read, write } from "./place.js";
import { clock, moment, span } from "./quantity.js";
import { say } from "./table.js";

/** Between two looks, in milliseconds: what is shown is made anew every few seconds by the daemon as well. */
const PAUSE = 5000;

const $ = (id) => document.getElementById(id);
const views = { mesh: new MeshView(go), link: new LinkView(go) };
views.link.again = () => ask();

let place = null;
/** When the daemon last answered, by this computer's clock; its own time at that moment; what went wrong since. */
let answered = null;
let toldAt = null;
let node = location.host;
let trouble = null;
let timer = null;
let asking = null;

/** Changes the page's address; the views follow it. */
function go(next) {
  const hash = write(next);
  if (hash === location.hash) enter();
  else location.hash = hash;
}

function enter() {
  const before = place?.view;
  place = read(location.hash);
  if (before !== undefined && before !== place.view) scrollTo(0, 0);
  for (const name of Object.keys(views)) $(`${name}-view`).hidden = name !== place.view;
  $("hint").hidden = true;
  views[place.view].enter(place);
  ask();
}

/** Asks now, and again after a pause. A look already under way is not waited for: it may be that of another view. */
async function ask() {
  clearTimeout(timer);
  const mine = (asking = {});
  try {
    const status = await daemon.status();
    node = status.node;
    say($("mesh-name"), status.mesh);
    say($("observer"), `seen from ${status.node}, meshd ${status.version}, up ${span(status.uptime)}`);
    await views[place.view].refresh(status);
    if (mine !== asking) return;
    [answered, toldAt, trouble] = [Date.now(), status.now, null];
    document.documentElement.dataset.shown = place.view;
  } catch (error) {
    if (mine !== asking) return;
    trouble = error instanceof daemon.Refusal ? error.message : "it does not answer";
    if (!(error instanceof daemon.Refusal) && !isSilence(error)) console.error(error);
  }
  tellFreshness();
  if (!document.hidden) timer = setTimeout(ask, PAUSE);
}

/** Whether an error means that no answer came, rather than that this page has a mistake. */
function isSilence(error) {
  return error instanceof DOMException || (error instanceof TypeError && /fetch|network/i.test(error.message));
}

/** Says how old the picture is. What is not live must never look as if it were. */
function tellFreshness() {
  const silent = trouble !== null;
  document.documentElement.classList.toggle("stale", silent);
  $("silence").hidden = !silent;
  if (answered === null) {
    say($("freshness"), silent ? "nothing to show yet" : "asking the daemon…");
    say($("silence"), silent ? `${node}: ${trouble}. Trying again every ${PAUSE / 1000} s.` : "");
  } else {
    const age = (Date.now() - answered) / 1000;
    say($("freshness"), `${clock(toldAt)}, ${span(age)} ago`);
    // Without its age, which the header shows: an alert that changed each second would be read out each second.
    const since = `The last answer came at ${moment(answered)}; everything below is as it was then.`;
    say($("silence"), silent ? `${node}: ${trouble}. ${since}` : "");
  }
  const title = `${node} · meshd`;
  document.title = silent ? `⚠ ${title}` : title;
}

addEventListener("hashchange", enter);
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) ask();
});
setInterval(tellFreshness, 1000);
enter();
