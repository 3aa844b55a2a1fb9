// Where the steps of a plan stand in its picture: each one right of all that it needs.
export interface Needing {
  id: string;
  needs?: string[] | null;
}

/** What each step waits for: what it names, or the step before it where it names nothing. */
export function needsOf(steps: readonly Needing[]): Map<string, string[]> {
  const known = new Set(steps.map(({ id }) => id));
  return new Map(
    steps.map(({ id, needs }, place) => {
      const before = steps[place - 1]?.id;
      return [id, needs ? needs.filter((one) => known.has(one)) : before ? [before] : []];
    }),
  );
}

/** Ids of steps, layer by layer. A circle, which no plan that runs has, does not hang it. */
export function layersOf(steps: readonly Needing[]): string[][] {
  const needs = needsOf(steps);
  const depth = new Map<string, number>();
  for (let round = 0; round < steps.length; round++) {
    let isChanged = false;
    for (const { id } of steps) {
      const wanted = Math.max(0, ...(needs.get(id) ?? []).map((one) => (depth.get(one) ?? 0) + 1));
      if (wanted !== depth.get(id) && wanted < steps.length) {
        depth.set(id, wanted);
        isChanged = true;
      }
    }
    if (!isChanged) break;
  }
  const layers: string[][] = [];
  for (const { id } of steps) {
    const at = depth.get(id) ?? 0;
    layers[at] ??= [];
    layers[at].push(id);
  }
  return layers.filter(Boolean);
}
