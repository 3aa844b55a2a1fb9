import { useQuery, useQueryClient } from "@tanstack/react-query";
import { api } from "../../api/client";
import { useRefresh } from "../../streams/FeedContext";

/** What waits for a person now. It is asked for anew whenever a decision was asked or made anywhere, so a count of it is
 * never kept. */
export function usePending() {
  return useQuery({
    queryKey: ["pending"],
    queryFn: ({ signal }) => api.get("/agent/decisions", { query: { status: "pending", limit: 100 }, signal }),
  });
}

export function useFreshPending(): void {
  const client = useQueryClient();
  useRefresh(
    (event) => event.type === "decision" || event.type === "end",
    () => void client.invalidateQueries({ queryKey: ["pending"] }),
    1000,
  );
}
