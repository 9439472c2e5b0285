// The page's words, in each of its languages.

const WORDS = {
  en: {
    skip: "Skip to the results",
    language: "Language",
    query: "Search with a photo",
    drop: "Drop a photo here, paste one, or choose one. HEIC photos work as well.",
    choose: "Choose a photo",
    camera: "Take a photo",
    keep: "My search may be kept to improve the results",
    crop: "Search with a part of the photo",
    cropHelp: "Draw a box on the photo, or move the sides.",
    left: "Left", right: "Right", top: "Top", bottom: "Bottom",
    cropSearch: "Search with this part",
    cropReset: "Whole photo",
    filters: "Filters",
    priceMin: "Price from",
    priceMax: "Price to",
    status: "Status",
    anyStatus: "Any",
    on_sale: "On sale",
    reserved: "Reserved",
    sold: "Sold",
    deleted: "Deleted",
    category: "Category:",
    clear: "All categories",
    apply: "Apply",
    searchWithThis: "Search with this photo",
    share: "Copy link",
    shared: "The link is copied.",
    newest: "Newest listings: pick one to start with",
    found: "Most like your photo",
    similar: "Visually similar items",
    yourPhoto: "Your photo",
    searching: "Searching …",
    loading: "Loading …",
    results: (n) => (n === 1 ? "1 result" : `${n} results`),
    nothing: "Nothing was found. Try without filters.",
    similarity: (score) => `${Math.round(100 * score)} % alike`,
    searchedIn: (index) => `Searched in ${index}`,
    notPhoto: "This is not a photo that can be read.",
    tooLarge: "This photo is too large.",
    busy: (seconds) => `Many are searching just now. Please try again in ${seconds} s.`,
    away: "The search is not available just now. Please try again.",
    notFound: "There is no such item any more.",
    offline: "The service cannot be reached.",
    noPhoto: "Its photo cannot be shown",
    failed: (detail) => `That did not work: ${detail}`,
  },
  ja: {
    skip: "検索結果へ移動",
    language: "言語",
    query: "写真で探す",
    drop: "写真をドロップ、貼り付け、または選択してください。HEICにも対応しています。",
    choose: "写真を選ぶ",
    camera: "写真を撮る",
    keep: "結果の改善のために検索を保存してもよい",
    crop: "写真の一部で探す",
    cropHelp: "写真の上で範囲を囲むか、四辺を動かしてください。",
    left: "左", right: "右", top: "上", bottom: "下",
    cropSearch: "この範囲で探す",
    cropReset: "写真全体",
    filters: "絞り込み",
    priceMin: "価格(下限)",
    priceMax: "価格(上限)",
    status: "販売状況",
    anyStatus: "すべて",
    on_sale: "販売中",
    reserved: "取引中",
    sold: "売り切れ",
    deleted: "削除済み",
    category: "カテゴリー:",
    clear: "すべてのカテゴリー",
    apply: "適用",
    searchWithThis: "この写真で探す",
    share: "リンクをコピー",
    shared: "リンクをコピーしました。",
    newest: "新着の出品から選ぶこともできます",
    found: "写真に似た商品",
    similar: "見た目が似ている商品",
    yourPhoto: "検索した写真",
    searching: "検索しています…",
    loading: "読み込んでいます…",
    results: (n) => `${n}件`,
    nothing: "見つかりませんでした。絞り込みを外してみてください。",
    similarity: (score) => `類似度 ${Math.round(100 * score)}%`,
    searchedIn: (index) => `検索したインデックス: ${index}`,
    notPhoto: "読み取れる写真ではありません。",
    tooLarge: "写真が大きすぎます。",
    busy: (seconds) => `ただいま混み合っています。${seconds}秒後にもう一度お試しください。`,
    away: "ただいま検索できません。しばらくしてからお試しください。",
    notFound: "この商品はもうありません。",
    offline: "サービスに接続できません。",
    noPhoto: "写真を表示できません",
    failed: (detail) => `失敗しました: ${detail}`,
  },
};

const KEPT_AS = "language";

let language = localStorage.getItem(KEPT_AS) ?? (navigator.language.startsWith("ja") ? "ja" : "en");

export function say(name, ...values) {
  const words = WORDS[language][name];
  return typeof words === "function" ? words(...values) : words;
}

export function price(yen) {
  return new Intl.NumberFormat(language, { style: "currency", currency: "JPY" }).format(yen);
}

export function speak(wanted) {
  language = wanted in WORDS ? wanted : "en";
  localStorage.setItem(KEPT_AS, language);
  translate();
}

// Puts the words into everything that names some.
export function translate() {
  document.documentElement.lang = language;
  for (const element of document.querySelectorAll("[data-words]")) element.textContent = say(element.dataset.words);
  for (const element of document.querySelectorAll("[data-label]")) element.setAttribute("aria-label", say(element.dataset.label));
  for (const button of document.querySelectorAll("[data-language]"))
    button.setAttribute("aria-pressed", String(button.dataset.language === language));
}
