import { type ReactNode, useEffect, useRef } from "react";
import { Icon } from "./Icon";

interface Given {
  title: string;
  onClose: () => void;
  children: ReactNode;
  className?: string;
  isBare?: boolean;
}

/** The browser's own dialog: it keeps the focus, closes by Escape and gives the focus back. */
export function Dialog({ title, onClose, children, className, isBare = false }: Given) {
  const dialog = useRef<HTMLDialogElement>(null);
  useEffect(() => {
    const shown = dialog.current;
    if (shown && !shown.open) shown.showModal();
    return () => shown?.close();
  }, []);
  return (
    // biome-ignore lint/a11y/useKeyWithClickEvents: Escape does the same
    <dialog
      ref={dialog}
      className={className}
      aria-label={title}
      onClose={onClose}
      onClick={(event) => event.target === dialog.current && onClose()}
    >
      {!isBare && (
        <header>
          <h2 className="grow">{title}</h2>
          <button type="button" className="button plain icon-button" aria-label="Close" onClick={onClose}>
            <Icon name="close" />
          </button>
        </header>
      )}
      {isBare ? children : <div className="body">{children}</div>}
    </dialog>
  );
}
