/** The ratings of all cases, kept in the browser's storage. */
class Ratings {
  constructor(study) {
    this.study = study;
    this.key = `reader study ${study.study} ${study.reader}`;
    this.cases = study.views.map(() => ({ values: this.empty(), seconds: 0 }));
    this.position = 0;
    this.problem = "";
    this.restore();
  }

  empty() {
    const criteria = Object.keys(this.study.criteria);
    return Object.fromEntries(criteria.map((name) => [name, Array(this.study.sets).fill(null)]));
  }

  rate(criterion, image, value) {
    this.cases[this.position].values[criterion][image] = value;
    this.store();
  }

  complete(position) {
    return Object.values(this.cases[position].values).every((values) => !values.includes(null));
  }

  get done() {
    return this.cases.filter((_, position) => this.complete(position)).length;
  }

  store() {
    try {
      localStorage.setItem(this.key, JSON.stringify([this.position, this.cases]));
      this.problem = "";
    } catch (error) {
      this.problem = `This browser does not keep your ratings (${error.name}): ` +
        "do not close this page before you have saved the file at the end.";
    }
  }

  restore() {
    try {
      const text = localStorage.getItem(this.key);
      if (text === null) return;
      const [position, cases] = JSON.parse(text);
      if (cases.length !== this.cases.length || !(position in cases)) throw new SyntaxError();
      [this.position, this.cases] = [position, cases];
    } catch (error) {
      this.problem = `Earlier ratings could not be read (${error.name}): you start anew.`;
    }
  }

  /** The content of the file that is sent back. */
  file() {
    const { kind, format, study, reader, name, views } = this.study;
    const ratings = views.map(({ id }, position) => {
      const { values, seconds } = this.cases[position];
      return { id, seconds: Math.round(seconds), values };
    });
    const checksum = crc32(JSON.stringify([study, reader, ratings]));
    return JSON.stringify({ kind, format, study, reader, name, ratings, checksum }, null, 1);
  }
}

/** CRC-32 of a text in UTF-8 as eight hexadecimal digits: finds accidental changes. */
function crc32(text) {
  let remainder = ~0;
  for (const byte of new TextEncoder().encode(text)) {
    remainder ^= byte;
    for (let bit = 0; bit < 8; bit++) {
      remainder = (remainder >>> 1) ^ (remainder & 1 ? 0xedb88320 : 0);
    }
  }
  return (~remainder >>> 0).toString(16).padStart(8, "0");
}
