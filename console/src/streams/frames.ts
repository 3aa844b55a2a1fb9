// Server-sent events from a fetch: EventSource can neither be shared between tabs nor say why it failed.
export interface Frame {
  /** The stream's cursor after this frame; null where the frame moves it nowhere. */
  id: string | null;
  /** Empty where the frame only moves the cursor. */
  data: string;
}

/** Takes text in pieces of any size and gives the frames that are whole. */
export class FrameReader {
  private rest = "";

  take(text: string): Frame[] {
    this.rest += text;
    const frames: Frame[] = [];
    for (;;) {
      const end = this.rest.indexOf("\n\n");
      if (end < 0) return frames;
      const frame = read(this.rest.slice(0, end));
      this.rest = this.rest.slice(end + 2);
      if (frame) frames.push(frame);
    }
  }
}

function read(text: string): Frame | null {
  let id: string | null = null;
  const data: string[] = [];
  for (const line of text.split("\n")) {
    if (line.startsWith("id:")) id = line.slice(3).trim();
    else if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
  }
  return id === null && data.length === 0 ? null : { id, data: data.join("\n") };
}
