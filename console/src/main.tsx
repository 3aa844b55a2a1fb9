import { QueryClient, QueryClientProvider } from "@tanstack/react-query";
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { Router } from "wouter";
import { App } from "./App";
import { ApiError } from "./api/problem";
import { showSettings } from "./design/settings";
import { listenToKeys } from "./design/shortcuts";
import { routerBase } from "./root";
import "./design/tokens.css";
import "./design/base.css";
import "./shell.css";

showSettings();
listenToKeys();

const queries = new QueryClient({
  defaultOptions: {
    queries: {
      // Events say when something has changed, so nothing is asked for again by itself.
      staleTime: 30_000,
      refetchOnWindowFocus: false,
      refetchOnReconnect: true,
      retry: (tries, error) => tries < 3 && error instanceof ApiError && error.isPassing,
      retryDelay: (tries, error) =>
        error instanceof ApiError && error.retryAfter ? error.retryAfter * 1000 : Math.min(500 * 2 ** tries, 8000),
    },
  },
});

const root = document.getElementById("root");
if (root)
  createRoot(root).render(
    <StrictMode>
      <QueryClientProvider client={queries}>
        <Router base={routerBase}>
          <App />
        </Router>
      </QueryClientProvider>
    </StrictMode>,
  );
