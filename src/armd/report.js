// The slider of each sample: hide what is written after pass t. Without it the page shows the whole text.
for (const sample of document.querySelectorAll(".sample")) {
  const stepper = sample.querySelector(".stepper");
  if (!stepper) continue;
  const [button, slider, output] = ["button", "input", "output"].map((tag) => stepper.querySelector(tag));
  const tokens = [...sample.querySelectorAll("[data-step]")];
  let timer = 0;

  function show() {
    let written = 0;
    for (const token of tokens) {
      const wait = +token.dataset.step > +slider.value;
      token.classList.toggle("wait", wait);
      if (!wait) written += 1;
    }
    const passes = Math.max(+slider.value, 0);
    output.textContent = `pass ${passes} of ${sample.dataset.steps}: ${written} of ${tokens.length} tokens`;
  }
  function stop() {
    clearInterval(timer);
    timer = 0;
    button.textContent = "Play";
  }
  function play() {
    if (timer) return stop();
    if (slider.value === slider.max) slider.value = slider.min;
    show();
    button.textContent = "Pause";
    timer = setInterval(() => {
      slider.value = +slider.value + 1;
      show();
      if (slider.value === slider.max) stop();
    }, Math.min(300, Math.max(40, 8000 / (slider.max - slider.min))));
  }
  slider.addEventListener("input", () => { stop(); show(); });
  button.addEventListener("click", play);
  stepper.hidden = false;
  show();
}
