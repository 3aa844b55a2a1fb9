/** Arguments that a person has edited. `value` is undefined where nothing differs. */
export function changed(
  original: string,
  edited: string,
): { value: Record<string, unknown> | undefined } | { fault: string } {
  let value: unknown;
  try {
    value = JSON.parse(edited);
  } catch (error) {
    return { fault: `The arguments are no JSON: ${error instanceof Error ? error.message : error}` };
  }
  if (typeof value !== "object" || value === null || Array.isArray(value))
    return { fault: "The arguments must be a JSON object, as they were." };
  const isSame = JSON.stringify(value) === JSON.stringify(JSON.parse(original));
  return { value: isSame ? undefined : (value as Record<string, unknown>) };
}
