import { describe, expect, test } from "vitest";
import { FrameReader } from "./frames";

describe("frames of a stream", () => {
  test("a frame is given once it is whole, wherever the network cut it", () => {
    const whole = 'id: 0-7\nevent: log\ndata: {"id":1}\n\n: nothing new\n\nid: 0-8\n\n';
    for (let cut = 0; cut <= whole.length; cut++) {
      const reader = new FrameReader();
      const frames = [...reader.take(whole.slice(0, cut)), ...reader.take(whole.slice(cut))];
      expect(frames).toEqual([
        { id: "0-7", data: '{"id":1}' },
        { id: "0-8", data: "" },
      ]);
    }
  });

  test("a comment is no frame", () => {
    expect(new FrameReader().take(": nothing new\n\n")).toEqual([]);
  });
});
