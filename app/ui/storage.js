/** Texts that the browser keeps. Those that it does not keep, because it is full or may not, last until the page is left. */

function kept(storage) {
  const unkept = new Map();
  return {
    /** @returns {?string} */
    get(name) {
      if (unkept.has(name)) return unkept.get(name);
      try {
        return storage().getItem(name);
      } catch {
        return null; // the user has blocked the storage
      }
    },
    set(name, text) {
      try {
        storage().setItem(name, text);
        unkept.delete(name);
      } catch {
        unkept.set(name, text);
      }
    },
    delete(name) {
      unkept.delete(name);
      try {
        storage().removeItem(name);
      } catch {
        // blocked: nothing is in it
      }
    },
  };
}

/** Until the tab is closed. */
export const ofTab = kept(() => sessionStorage);

/** For all tabs, without an end. */
export const ofBrowser = kept(() => localStorage);
