/** Keeps the end of the page in view while text streams in, unless the user has scrolled up. */

const NEAR_END_PX = 48;

export class Follower {
  #following = true;
  #position = 0;
  #frame = 0;
  #button;

  /** @param {HTMLElement} button scrolls to the end; shown while the page does not follow */
  constructor(button) {
    this.#button = button;
    button.addEventListener("click", () => this.restart());
    window.addEventListener("scroll", () => this.#onScroll(), { passive: true });
    window.addEventListener("resize", () => this.toEnd());
  }

  get #distance() {
    const page = document.documentElement;
    return page.scrollHeight - page.clientHeight - page.scrollTop;
  }

  /** Only scrolling up ends following. New text moves the end of the page, not the position. */
  #onScroll() {
    const position = document.documentElement.scrollTop;
    if (this.#distance < NEAR_END_PX) this.#following = true;
    else if (position < this.#position) this.#following = false;
    this.#position = position;
    this.#button.hidden = this.#following;
  }

  /** Scroll to the end if following; at most once per frame. */
  toEnd() {
    if (!this.#following || this.#frame) return;
    this.#frame = requestAnimationFrame(() => {
      this.#frame = 0;
      if (this.#following) window.scrollTo({ top: document.documentElement.scrollHeight, behavior: "instant" });
    });
  }

  /** Scroll to the end and follow again. */
  restart() {
    this.#following = true;
    this.#button.hidden = true;
    this.toEnd();
  }
}
